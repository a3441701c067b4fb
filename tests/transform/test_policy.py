from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor, nn

import qat
from qat import Grid, PerChannel, PerGroup, PerTensor, Policy, QuantSpec, Rule, TensorRule, load_policy
from qat.estimators import EWGS
from qat.observers import MSE, MeanAbs, Percentile
from qat.quantizers import LSQ, Static

LAYERS = [("conv1", "Conv2d"), ("layer1.0.conv1", "Conv2d"), ("layer1.0.fc", "Linear"), ("fc", "Linear")]
PRESETS = {"w8a8": (8, 8), "w4a8": (4, 8), "w4a4": (4, 4), "w3a3": (3, 3), "w2a2": (2, 2)}


def bits(policy: Policy) -> list[tuple[int, int]]:
    """(weight bits, activation bits) of every layer."""
    assigned = policy.assign(LAYERS)
    found = []
    for name, _ in LAYERS:
        weight, activation = assigned[name].weight, assigned[name].activation
        assert weight is not None
        assert activation is not None
        found.append((weight.bits, activation.bits))
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_leaves_the_ends_in_8_bits(name: str) -> None:
    policy = load_policy(name)
    assert bits(policy) == [(8, 8), PRESETS[name], PRESETS[name], (8, 8)]
    assert policy.residual_bits == 8
    assert policy.name == name


def test_the_ends_and_the_residual_are_switchable() -> None:
    assert bits(load_policy("w2a2", first_last_bits=4)) == [(4, 4), (2, 2), (2, 2), (4, 4)]
    assert bits(load_policy("w2a2", first_last_bits=None)) == [(2, 2)] * 4


def test_the_ends_may_have_another_quantizer() -> None:
    parts = {"weight": {"quantizer": "Ternary"}, "activation": {"quantizer": "PACT"}}
    assigned = load_policy({"preset": "w2a2", "first_last_quantizer": "LSQ", **parts}).assign(LAYERS)
    found = [(rule.weight.quantizer, rule.activation.quantizer) for rule in assigned.values()]
    assert found == [("LSQ", "LSQ"), ("Ternary", "PACT"), ("Ternary", "PACT"), ("LSQ", "LSQ")]
    dynamic = load_policy("w2_dynamic", first_last_quantizer="LSQ").assign(LAYERS)
    assert [rule.activation.quantizer for rule in dynamic.values()] == ["Dynamic"] * 4


@pytest.mark.parametrize("residual_bits", [8, None])
def test_what_flows_between_layers_is_uniform(residual_bits: int | None) -> None:
    policy = load_policy("w4a4", activation={"quantizer": "APoT"}, first_last_bits=None, residual_bits=residual_bits)
    assert policy.assign(LAYERS)["fc"].activation.quantizer == "APoT"
    assert (policy.residual_rule().quantizer, policy.residual_rule().bits) == ("LSQ", residual_bits or 4)
    assert load_policy("w4a4", activation={"quantizer": "PACT"}).residual_rule().quantizer == "PACT"
    assert load_policy("w2a2", residual_bits=4).residual_rule() == TensorRule(4)
    assert load_policy("w2a2", residual_bits=None).residual_rule() == TensorRule(2)
    assert load_policy("w2a2").residual_rule() == TensorRule(8)


@pytest.mark.parametrize("name", ["w4", "w8"])
def test_a_preset_without_activations_quantizes_weights_alone(name: str) -> None:
    policy = load_policy(name)
    ends = load_policy(name, first_last_bits=None)
    assert [policy.assign(LAYERS)[layer].weight for layer, _ in LAYERS[:2]] == [
        load_policy(f"{name}a8").rules[rule].weight for rule in ("first", "all")
    ]
    assert all(rule.activation is None for rule in [*policy.rules.values(), *ends.rules.values()])
    assert list(ends.rules) == ["all"]
    assert policy.residual_rule() is None


def test_a_dynamic_preset_rounds_the_inputs_of_layers_and_no_residual() -> None:
    policy = load_policy("w4_dynamic", activation={"quantizer": "PACT"})
    assert [rule.weight.bits for rule in policy.rules.values() if rule.weight] == [4, 8, 8]
    assert {rule.activation for rule in policy.rules.values()} == {TensorRule(8, symmetric=False, quantizer="Dynamic")}
    assert policy.residual_rule() is None
    swapped = policy.with_parts("Static", "MinMax")
    assert [
        (r.weight.quantizer, r.activation.quantizer) for r in swapped.rules.values() if r.weight and r.activation
    ] == [("Static", "Dynamic")] * 3


def test_weights_are_per_channel_and_narrow_and_activations_are_not() -> None:
    rule = load_policy("w4a8").rules["all"]
    assert rule.weight is not None
    assert rule.activation is not None
    assert rule.weight.spec() == QuantSpec(Grid(4, narrow=True), PerChannel())
    assert rule.activation.spec() == QuantSpec(Grid(8), PerTensor())
    assert rule.activation.spec(signed=False) == QuantSpec(Grid(8, signed=False), PerTensor())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (TensorRule(4, "per_group", 32), QuantSpec(Grid(4), PerGroup(32))),
        (TensorRule(8, symmetric=False), QuantSpec(Grid(8, signed=False), symmetric=False)),
        (TensorRule(8, signed=False), QuantSpec(Grid(8, signed=False))),
        (TensorRule(8, signed=False, narrow=True), QuantSpec(Grid(8, signed=False))),
    ],
    ids=str,
)
def test_specs_of_tensor_rules(rule: TensorRule, expected: QuantSpec) -> None:
    assert rule.spec(signed=True) == expected


def test_a_rule_says_signed_and_the_graph_is_not_asked() -> None:
    assert TensorRule(8, signed=True).spec(signed=False).grid.signed
    assert not TensorRule(8, signed=False).spec(signed=True).grid.signed


def test_a_later_rule_wins_as_a_whole() -> None:
    policy = load_policy(
        {
            "preset": "w4a4",
            "rules": {
                "block": {
                    "match": "layer1.*",
                    "weight": {"bits": 3, "granularity": "per_tensor"},
                    "activation": {"bits": 3},
                },
                "linear": {"match": "type:Linear", "weight": {"bits": 8}},
            },
        }
    )
    assigned = policy.assign(LAYERS)
    assert assigned["layer1.0.conv1"].weight == TensorRule(3, "per_tensor", narrow=True)
    # the last rule that matches replaces the earlier ones: nothing of "block" or "last" is left
    for name in ("layer1.0.fc", "fc"):
        assert assigned[name] == Rule("type:Linear", TensorRule(8, "per_channel", narrow=True), None)


def test_the_order_of_rules_decides() -> None:
    four, two = ({"match": "*", "weight": {"bits": b}} for b in (4, 2))
    one = load_policy({"rules": {"a": four, "b": two}}).assign(LAYERS)
    other = load_policy({"rules": {"b": two, "a": four}}).assign(LAYERS)
    assert {r.weight.bits for r in one.values() if r.weight} == {2}
    assert {r.weight.bits for r in other.values() if r.weight} == {4}


def test_layers_without_a_rule_are_not_assigned() -> None:
    policy = load_policy({"rules": {"block": {"match": "layer1.*", "weight": {"bits": 4}}}})
    assert list(policy.assign(LAYERS)) == ["layer1.0.conv1", "layer1.0.fc"]


def test_a_null_rule_removes_that_of_the_preset() -> None:
    assert bits(load_policy({"preset": "w4a4", "rules": {"last": None}})) == [(8, 8), (4, 4), (4, 4), (4, 4)]


def test_a_rule_that_matches_nothing_lists_the_layers() -> None:
    policy = load_policy({"preset": "w4a4", "rules": {"blocks": {"match": "block*", "weight": {"bits": 2}}}})
    with pytest.raises(ValueError, match=r"rule 'blocks' with match='block\*' matches no layer") as error:
        policy.assign(LAYERS)
    assert "quantizable layers: conv1, layer1.0.conv1, layer1.0.fc, fc." in str(error.value)
    with pytest.raises(ValueError, match="quantizable layers: none at all"):
        policy.assign([])


def test_fields_for_every_rule() -> None:
    policy = load_policy(
        {
            "preset": "w4a4",
            "weight": {"granularity": "per_group", "group_size": 4, "observer": "MeanAbs"},
            "activation": {"quantizer": "Static", "observer": {"_target_": "Percentile", "percentile": 99.0}},
        }
    )
    weight, activation = policy.rules["first"].weight, policy.rules["all"].activation
    assert weight is not None
    assert activation is not None
    assert weight == TensorRule(8, "per_group", 4, narrow=True, observer="MeanAbs")
    built = activation.build()
    assert isinstance(built, Static)
    assert isinstance(built.observer, Percentile)
    assert built.observer.percentile == 99.0
    assert isinstance(weight.build((2, 8)).observer, MeanAbs)


def test_parts_by_import_path() -> None:
    built = TensorRule(4, quantizer={"_target_": "qat.quantizers.LSQ"}, observer="qat.observers.MSE").build()
    assert isinstance(built, LSQ)
    assert isinstance(built.observer, MSE)


def test_other_parts_everywhere() -> None:
    policy = load_policy({"preset": "w4a4", "rules": {"weights": {"match": "fc", "weight": {"bits": 4}}}})
    swapped = policy.with_parts("Static", "MinMax")
    tensors = [t for rule in swapped.rules.values() for t in (rule.weight, rule.activation) if t]
    assert {(t.quantizer, t.observer) for t in tensors} == {("Static", "MinMax")}
    assert swapped.rules["weights"].activation is None
    assert bits(load_policy("w4a4").with_parts("Static", "MinMax")) == bits(load_policy("w4a4"))


CONTENTS: list[dict[str, Any]] = [
    {"preset": "w8a8"},
    {"preset": "w2a2", "residual_bits": None, "first_last_bits": None, "name": "mine"},
    {
        "rules": {
            "all": {"match": "*", "weight": {"bits": 4, "granularity": "per_group", "group_size": 8}},
            "x": {"match": "type:Linear", "weight": None, "activation": {"bits": 8, "symmetric": False}},
        },
        "activation": {"observer": {"_target_": "Percentile", "percentile": 99.5}},
    },
]


@pytest.mark.parametrize("content", CONTENTS, ids=["preset", "switched", "rules"])
def test_round_trips(content: dict[str, Any], tmp_path: Path) -> None:
    policy = load_policy(content)
    assert load_policy(policy.to_dict()) == policy
    for i, written in enumerate((content, policy.to_dict())):
        path = tmp_path / f"policy{i}.yaml"
        path.write_text(yaml.safe_dump(written, sort_keys=False))
        assert load_policy(path) == policy
        assert load_policy(str(path)) == policy
    assert load_policy(policy) == policy
    assert load_policy(policy, residual_bits=6).residual_bits == 6


def rule(**changes: Any) -> dict[str, Any]:
    return {"rules": {"all": {"match": "*", "weight": {"bits": 4}} | changes}}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("w4b8", "policy 'w4b8' is neither a preset .* nor a .yaml file; did you mean w4a8"),
        ({"preset": "4w4a"}, "preset='4w4a' does not exist: write w<bits>a<bits>, for example w4a8"),
        ("w9a8", "weight of rule 'all': bits=9 is not a valid width"),
        ("w4a1", "activation of rule 'all': bits=1 is not a valid width"),
        ({"preset": "w4a4", "first_last_bits": 16}, "weight of rule 'first': bits=16 is not a valid width"),
        ({"preset": "w4a4", "residual_bits": 16}, "residual_bits: bits=16 is not a valid width"),
        (
            {"preset": "w4a4", "first_last_bit": 8},
            "unknown key 'first_last_bit' in a policy; did you mean 'first_last_bits'",
        ),
        ({"preset": "w4a4", "xyz": 8}, "unknown key 'xyz' in a policy; known keys: preset, rules, residual_bits"),
        (rule(weigth={"bits": 4}), "unknown key 'weigth' in rule 'all'; did you mean 'weight'"),
        (
            rule(weight={"bits": 4, "granularty": "x"}),
            "unknown key 'granularty' in weight of rule 'all'; did you mean 'granularity'",
        ),
        (rule(weight={"narrow": True}), "weight of rule 'all' has no bits: write for example bits: 8"),
        (rule(weight={"bits": "4"}), "weight of rule 'all': bits='4' is not a valid width"),
        (rule(weight={"bits": 4, "granularity": "per_row"}), "granularity='per_row' does not exist: write per_tensor"),
        (rule(weight={"bits": 4, "granularity": "per_group"}), "per_group needs a group_size such as 32"),
        (
            rule(weight={"bits": 4, "group_size": 8}),
            "per_channel with group_size=8: per_group needs .* the others take none",
        ),
        (
            rule(weight={"bits": 4, "quantizer": "LSQQ"}),
            "'LSQQ' is not a quantizer: write one of .*LCQ, LSQ, .*PACT, .*LSQPlus, PowersOfTwo, .*Ternary, or the import path",
        ),
        (
            rule(weight={"bits": 4, "quantizer": {"_target_": "APoT", "estimator": "EWGS"}}),
            "weight of rule 'all': 'estimator' is not an option of APoT; it has none",
        ),
        (
            rule(weight={"bits": 4, "quantizer": {"_target_": "LSQ", "estimator": {"_target_": "EWGS", "beta": 1}}}),
            "'beta' is not an option of EWGS; it has delta",
        ),
        (
            rule(weight={"bits": 4, "observer": {"_target_": "Percentile", "percent": 99}}),
            "'percent' is not an option of Percentile; it has percentile",
        ),
        (
            rule(weight={"bits": 4, "quantizer": {"_target_": "LSQ", "estimator": {"delta": 3}}}),
            "{'delta': 3} does not name an estimator: add _target_",
        ),
        (
            rule(activation={"bits": 8, "symmetric": False, "quantizer": {"_target_": "Dynamic", "estimator": "EWGS"}}),
            "'estimator' is not an option of Dynamic; it has none",
        ),
        (rule(weight={"bits": 4, "observer": "LSQ"}), "'LSQ' is not an observer: write one of KL, MSE, MeanAbs"),
        (rule(weight={"bits": 4, "observer": "no.such.Thing"}), "'no.such.Thing' is not an observer"),
        (rule(weight={"bits": 4, "observer": "os.system"}), "'os.system' is not an observer"),
        (
            rule(activation={"bits": 8, "granularity": "per_channel"}),
            "because an activation has one scale: write per_tensor",
        ),
        ({"rules": {"all": {"weight": {"bits": 4}}}}, "rule 'all' does not say which layers: add match"),
        ({}, "a policy without rules quantizes nothing: name a preset"),
        ({"weight": {"bit": 4}, "preset": "w4a4"}, "unknown key 'bit' in weight"),
    ],
)
def test_a_mistake_says_what_to_write(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_policy(source)


def test_a_yaml_file_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError, match=r"policy file no/such.yaml does not exist"):
        load_policy("no/such.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"preset": "w4a8", "activation": {"symmetric": "no"}}, "symmetric='no' is neither true nor false"),
        ({"preset": "w4a8", "weight": {"narrow": "yes"}}, "narrow='yes' is neither true nor false"),
        ({"rules": {"a": {"match": "*", "required": "no"}}}, "required='no' is neither true nor false"),
        (
            {"preset": "w4a8", "weight": {"bits": 2}},
            "weight.bits=2 cannot stand beside preset=w4a8, which sets the bits",
        ),
        ({"preset": "w4a8", "weight": 8}, "weight=8 has no keys"),
        ({"preset": "w4a8", "rules": ["conv1"]}, r"rules=\['conv1'\] has no keys: write for example \{mine: \{match"),
        ({"preset": "w4a8", "rules": {"a": "conv1"}}, "rule 'a'='conv1' has no keys"),
        ({"preset": "w4a8", "rules": {"a": {"match": "*", "weight": 8}}}, "weight of rule 'a'=8 has no keys"),
        ({"preset": "w4a8", "weight": {"quantizer": 8}}, "8 is not a quantizer: write the name of a class"),
        (
            {"preset": "w4a8", "weight": {"observer": {"_target_": "Percentile", "percentile": "abc"}}},
            r"percentile='abc' must lie in \(50, 100\]: write for example 99.99",
        ),
    ],
)
def test_what_has_the_wrong_type_is_refused_in_a_sentence(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_policy(content).rules["all"].weight.build((4, 4))


class UserQuantizer(LSQ):
    """A class of the user, at the top level of a module."""

    def __init__(self, *arguments: Any, option: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.option = option


MINE = f"{__name__}.UserQuantizer"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (LSQ, "LSQ"),
        (UserQuantizer, MINE),
        ({"_target_": LSQ}, {"_target_": "LSQ"}),
        ({"_target_": UserQuantizer, "option": 1}, {"_target_": MINE, "option": 1}),
        ({"_target_": "LSQ", "estimator": EWGS}, {"_target_": "LSQ", "estimator": "EWGS"}),
        (
            {"_target_": LSQ, "estimator": {"_target_": EWGS, "delta": 0.1}},
            {"_target_": "LSQ", "estimator": {"_target_": "EWGS", "delta": 0.1}},
        ),
    ],
    ids=str,
)
def test_a_class_is_stored_by_its_name(given: Any, stored: Any, tmp_path: Path) -> None:
    rule = TensorRule(4, quantizer=given, observer=MSE)
    assert (rule.quantizer, rule.observer) == (stored, "MSE")
    assert rule == TensorRule(4, quantizer=stored)
    assert type(rule.build()) is rule.quantizer_class
    policy = load_policy("w4a4", weight={"quantizer": given}, activation={"observer": {"_target_": Percentile}})
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy.to_dict(), sort_keys=False))
    assert load_policy(tmp_path / "policy.yaml") == policy


def test_options_of_a_class_reach_it() -> None:
    built = TensorRule(4, quantizer={"_target_": UserQuantizer, "option": 3}).build()
    assert isinstance(built, UserQuantizer)
    assert built.option == 3


def test_with_parts_takes_classes() -> None:
    policy = load_policy("w4a4")
    assert policy.with_parts(Static, MSE, MeanAbs) == policy.with_parts("Static", "MSE", "MeanAbs")


def test_a_class_that_cannot_be_imported_is_refused() -> None:
    class Local(LSQ):
        pass

    sentence = r"Local cannot be imported by this path, .*: define the class at the top level of a module\.$"
    for quantizer in (Local, {"_target_": Local}):
        with pytest.raises(ValueError, match=sentence):
            TensorRule(4, quantizer=quantizer)
    with pytest.raises(ValueError, match=r"<lambda> at .* is not a quantizer: write the name of a class"):
        TensorRule(4, quantizer=lambda *_: None)
    with pytest.raises(ValueError, match=r"'builtins\.int' is not an observer: write one of KL"):
        TensorRule(4, observer=int)


def test_a_policy_for_transformers_switches_embeddings_and_head() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.body, self.mid, self.head = (
                nn.Embedding(5, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 2),
            )

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.mid(self.body(self.table(ids))))

    def formats(**switches: int | None) -> list[str]:
        lines = qat.inspect(qat.prepare(Small(), load_policy("transformer_w4_dynamic_per_token", **switches))).lines
        return [line.weight.partition(" ")[0] for line in lines if line.kind == "layer"]

    assert formats() == ["int8", "int4", "int4", "int8"]
    assert formats(embeddings=None, head=4) == ["float", "int4", "int4", "int4"]
    assert formats(embeddings=4, head=None) == ["int4", "int4", "int4", "float"]
    without_embedding = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert qat.inspect(qat.prepare(without_embedding, "transformer_w8a8")).lines  # not every transformer has one
    with pytest.raises(ValueError, match="embeddings stands beside preset=w8a8: write preset: transformer_w8a8"):
        load_policy("w8a8", embeddings=None)
    assert "required" not in load_policy("w8a8").to_dict()["rules"]["all"]  # checkpoints from before compare equal
