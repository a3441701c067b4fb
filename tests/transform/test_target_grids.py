"""What a target cannot run is refused before training, with the sentence that mends it."""

import re
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import nn

import qat
from qat.experiment.schema.values import TargetName
from qat.export import TARGETS
from qat.quantizers import Quantizer
from qat.transform.target_grids import TARGET_GRIDS


def test_every_list_of_targets_has_the_same_names() -> None:
    assert list(TARGET_GRIDS) == list(get_args(TargetName))
    assert {t.name for t in TARGETS} <= set(TARGET_GRIDS)
    assert all(t.grids is TARGET_GRIDS[t.name] and t.runtime.name == t.runs_in for t in TARGETS)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"preset": "w8a8", "activation": {"symmetric": False}}, "write activation: {symmetric: true}"),
        ({"preset": "w8a8", "activation": {"signed": False}}, "write activation: {signed: null}"),
        ({"preset": "w8a8", "weight": {"symmetric": False}}, "write weight: {symmetric: true}"),
        ({"preset": "w8_dynamic"}, "write a preset such as w8a8"),
        ({"preset": "mxfp4"}, "floating-point format (MX): write a preset such as w8a8"),
        ({"preset": "w4"}, "write a preset such as w4a8, or give it activation: {bits: 8}"),
        ({"preset": "fp8"}, "write a preset such as w8a8"),
        (
            {"preset": "w4a8", "weight": {"granularity": "per_group", "group_size": 1}},
            "write weight: {granularity: per_channel, group_size: null}",
        ),
        (
            {"preset": "w4a4", "first_last_quantizer": "LSQ", "activation": {"quantizer": "APoT"}},
            "write activation: {quantizer: LSQ}",
        ),
    ],
)
def test_what_a_target_cannot_run_is_refused(content: dict[str, Any], says: str) -> None:
    qat.prepare(small(), qat.load_policy(content))
    with pytest.raises(ValueError, match="target=tensorrt cannot run rule 'all'") as refused:
        qat.prepare(small(), qat.load_policy(content), target="tensorrt")
    assert says in str(refused.value)
    with pytest.raises(ValueError, match="target=tensorrt"):
        qat.load_policy({**content, "target": "tensorrt"})


CONTENTS: list[dict[str, Any]] = [
    *({"preset": preset} for preset in ("w4", "w3", "transformer_w4", "transformer_w8a8", "transformer_fp8")),
    *({"preset": preset} for preset in ("w8_dynamic_per_token", "mxfp4_weights", "nvfp4", "fp8_static")),
    {"preset": "w4", "weight": {"symmetric": False, "granularity": "per_group", "group_size": 1}},
    {"preset": "w4a4", "activation": {"signed": False}},
    {"preset": "w4a4", "activation": {"signed": False}, "first_last_bits": 4},
    {"preset": "w8a8", "activation": {"symmetric": False, "quantizer": "LSQPlus"}},
    {"preset": "w4a4", "first_last_quantizer": "LSQ", "activation": {"quantizer": "APoT"}},
]


def advised(content: dict[str, Any], advice: str) -> dict[str, Any]:
    """The policy that a refusal asks for, to the letter."""
    preset = re.search(r"write a preset such as (\w+)", advice)
    if preset:
        return content | {"preset": preset[1]}
    tensor, fields = re.search(r"write (weight|activation): ({.*?})", advice).groups()  # type: ignore[union-attr]
    return content | {tensor: content.get(tensor, {}) | yaml.safe_load(fields)}


@pytest.mark.parametrize("target", TARGET_GRIDS)
@pytest.mark.parametrize("content", CONTENTS, ids=str)
def test_the_advice_of_a_refusal_leads_to_a_policy_that_the_target_runs(content: dict[str, Any], target: str) -> None:
    for _ in range(6):
        try:
            policy = qat.load_policy({**content, "target": target})
        except ValueError as refusal:
            content = advised(content, str(refusal))
        else:
            break
    else:
        pytest.fail("the advice leads nowhere")
    if TARGET_GRIDS[target].zero_is_code_0:
        of_activations = [rule.activation for rule in policy.rules.values()] + [policy.residual_rule()]
        assert all(rule is None or rule.bits < 8 or rule.signed for rule in of_activations)


def test_a_layer_that_returns_floats_may_compute_in_them() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2))
    qat.prepare(network, "w8a8", torch.zeros(1, 3, 6, 6), target="litert")
    policy = {"preset": "w8a8", "quantize_outputs": True}
    with pytest.raises(ValueError, match="target=litert has no integer kernel for layer '2'"):
        qat.prepare(network, policy, torch.zeros(1, 3, 6, 6), target="litert")


def test_inputs_in_a_floating_point_format_are_refused_for_onnx_runtime_before_training() -> None:
    network = nn.Sequential(nn.Linear(32, 4))
    with pytest.raises(ValueError, match=r"target=onnxruntime .* \(NVFP4\): write a preset such as nvfp4_weights"):
        qat.prepare(network, qat.load_policy("nvfp4", first_last_bits=None), torch.zeros(1, 32), target="onnxruntime")
    qat.prepare(
        network, qat.load_policy("nvfp4_weights", first_last_bits=None), torch.zeros(1, 32), target="onnxruntime"
    )


@pytest.mark.parametrize("target", TARGET_GRIDS)
def test_weights_with_a_zero_point_are_refused_where_layers_compute_in_integers(target: str) -> None:
    content: dict[str, Any] = {"preset": "w4a8", "weight": {"symmetric": False}}
    with pytest.raises(ValueError, match=f"target={target} .* zero-point: write weight: {{symmetric: true}}"):
        qat.load_policy({**content, "target": target})
    if TARGET_GRIDS[target].float_layers:
        qat.load_policy({"preset": "w4", "weight": {"symmetric": False}, "target": target})


def test_the_target_chooses_the_sign_that_a_policy_leaves_open() -> None:
    def signs(target: str | None) -> list[tuple[int, bool]]:
        prepared = qat.prepare(small(), "w4a4", torch.zeros(1, 3, 6, 6), target)
        sites = [m for n, m in prepared.named_modules() if isinstance(m, Quantizer) and n.startswith("sites.")]
        return [(q.spec.grid.bits, q.spec.grid.signed) for q in sites]

    assert signs(None) == [(8, True), (4, False), (8, False)]
    assert signs("tensorrt") == [(8, True), (4, False), (8, True)]  # unsigned codes of 4 bits fit int8


def test_residual_tensors_respect_the_target() -> None:
    policy = qat.load_policy("w4a4", target="tensorrt")
    rule = policy.residual_rule()
    assert rule is not None
    assert (rule.bits, rule.signed) == (8, True)


def test_a_target_is_kept_in_records_and_absent_from_them_without_one() -> None:
    policy = qat.load_policy("w8a8", target="tensorrt")
    assert qat.load_policy(policy.to_dict()) == policy
    assert "target" not in qat.load_policy("w8a8").to_dict()


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean tensorrt"):
        qat.prepare(small(), "w8a8", target="tensort")
