"""Mistakes typed at the front door, each answered with one sentence on standard error."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from qat.experiment import errors
from tests.experiment.configurations import RECIPES, ROOT
from tests.training.user_modules import LIGHTNING

pytestmark = [
    *LIGHTNING,
    pytest.mark.filterwarnings(r"ignore:.*GPU available but not used.*"),
]

TOP = "the top-level keys are"
MISTAKES = {
    "no such recipe": (
        ["recipe=digits_w4a9"],
        "recipe 'digits_w4a9' does not exist: write recipe=NAME with one of cifar10_",
    ),
    "no such option in a list": (
        ["export=[onnxruntime,packed]"],
        "export 'packed' does not exist: write export=NAME with one of",
    ),
    "no such option": (["optim=adamx"], "optim 'adamx' does not exist: write optim=NAME with one of adam, adamw, sgd."),
    "bits": (["policy.preset=w9a8"], "policy.preset='w9a8' is not possible: write w<bits>a<bits> with 2 to 8 bits"),
    "preset": (["policy.preset=wxa8"], "policy.preset='wxa8' is not possible: write w<bits>a<bits>"),
    "rule that matches nothing": (
        ["policy.rules={a: {match: 'layer9.*', weight: {bits: 8}}}"],
        "rule 'a' with match='layer9.*' matches no layer; quantizable layers: conv1, layer1.0.conv1,",
    ),
    "key": (
        ["trainer.max_step=20"],
        "unknown key trainer.max_step; did you mean trainer.max_steps?",
    ),
    "key at the top": (["xyz=20"], f"unknown key xyz; {TOP} batch_size, budget, calibration_images,"),
    "value": (["batch_size=abc"], "batch_size='abc' is not possible: write a whole number from 1 to 65,536."),
    "syntax": (["seed=]"], "'seed=]' cannot be read: write key=value"),
    "checkpoint": (["model.checkpoint=/nowhere.safetensors"], "model.checkpoint=/nowhere.safetensors does not exist"),
    "data folder": (
        ["data=cifar10", "data.root=/nowhere/x"],
        "CIFAR-10 is not in /nowhere/x, a folder that does not exist",
    ),
    "image folder": (
        ["data=image_folder", "data.root=/nowhere"],
        "/nowhere has neither train/ nor test/: set data.root=",
    ),
    "input shape": (["model=lenet5"], "LeNet5 cannot take images of shape (1, 8, 8)"),
    "depth": (["model.depth=9"], "model.depth=9 is not 6n + 2: write 8, 14, 20"),
    "no float network": (["float.epochs=0"], "there is no float network: set model.checkpoint=PATH"),
    "too many calibration images": (
        ["calibration_images=5000"],
        "calibration_images=5000 is not possible, there are 1167 training images: write",
    ),
    "observer": (
        ["+ptq.ladder.mine=[{_target_: qat.ptq.Calibrate, observer: Foo}]"],
        "ptq.ladder.mine.0.observer: 'Foo' is not an observer: write one of",
    ),
    "order of passes": (
        ["+ptq.ladder.mine=[{_target_: qat.ptq.AdaRound}]"],
        "ptq: ladder 'mine': a list of passes has Calibrate once, this one 0 times.",
    ),
    "ratio": (
        ["callbacks.qat.quantizer_lr_ratio=-1"],
        "callbacks.qat.quantizer_lr_ratio=-1 is not possible: write a number from 0 to 1,000.",
    ),
    "optimizer of scales": (
        ["callbacks.qat.quantizer_optimizer={_target_: torch.optim.Adam, lr: 1e-3}"],
        "callbacks.qat.quantizer_optimizer has no parameters yet: add _partial_: true, as in",
    ),
    "share": (["freeze.batch_norm=2"], "freeze.batch_norm=2 is not possible: write a number from 0 to 1, or null."),
    "oscillation": (
        ["oscillation=freeze", "oscillation.freezing=2"],
        "oscillation.freezing=2 is not possible: write a number from 0 to 1, or",
    ),
    "stages": (
        ["progressive=[8,3]"],
        "progressive: the stages end with 3 bits, the policy's fewest are 2: write stages that end with 2,",
    ),
    "stage without a step": (
        ["progressive={0.0: 8, 0.999: 2}"],
        "progressive: a fit of 900 steps is too short for the stages {0.0: 8, 0.999: 2}: give it more steps.",
    ),
    "nothing that oscillates": (
        ["oscillation=track", "policy=w8a8"],
        "OscillationControl(max_bits=4) finds no weight of so few bits; the fewest are 8: write max_bits=8",
    ),
    "format without a file": (
        ["policy=nvfp4"],
        "target=onnxruntime cannot run rule 'all', which is in a floating-point format (NVFP4): write a preset such as",
    ),
    "trainer option": (["+trainer.foo=1"], "unknown key trainer.foo of Trainer; trainer has the keys accelerator,"),
    "resume": (["resume=/nowhere.ckpt"], "resume=/nowhere.ckpt does not exist"),
}

ALSO_TESTED_WHERE_RAISED = {
    "preset", "image folder", "order of passes", "ratio", "share", "stages", "stage without a step",
    "nothing that oscillates", "format without a file", "too many calibration images",
}  # fmt: skip
"""Sentences that a test of the part itself reads, which take the same way through the front door as others."""


def front_door(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`python train.py ...`, in this process. The exit status."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr("qat.experiment.float_network._train", lambda *_: pytest.fail("training began"))
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ALSO_TESTED_WHERE_RAISED else ()) for name in MISTAKES],
)
def test_a_mistake_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides, expected = MISTAKES[name]
    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path))
    status = front_door([f"hydra.run.dir={tmp_path}", *overrides], monkeypatch)
    said = capfd.readouterr().err
    assert status == 2
    assert said.startswith(f"error: {expected}"), said
    assert said.count("\n") == 1, said
    assert not (tmp_path / "results.json").exists()


def test_a_checkpoint_of_another_network_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from qat.models import ResNetCifar, save_weights

    save_weights(ResNetCifar(8, num_classes=7, in_channels=1, width=8), tmp_path / "seven.safetensors")
    front_door([f"hydra.run.dir={tmp_path}", f"model.checkpoint={tmp_path}/seven.safetensors"], monkeypatch)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "seven.safetensors has 7 classes in 'linear.weight' (7, 32), the data have 10" in said


def test_a_folder_that_holds_a_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("{}")
    assert front_door([f"hydra.run.dir={tmp_path}"], monkeypatch) == 2
    assert f"hydra.run.dir={tmp_path} holds results.json of another run" in capfd.readouterr().err
    assert (tmp_path / "results.json").read_text() == "{}"


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path}", "debug=true", "batch_size=abc"])
    GlobalHydra.instance().clear()
    with pytest.raises(ValueError, match="batch_size='abc'"):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@pytest.mark.parametrize("folder", [["--config-dir={}"], ["--config-dir", "{}"]])
def test_help_lists_the_options_of_every_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: list[str]
) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "of_my_own.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["train.py", "--help", *(word.format(tmp_path) for word in folder)])
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    said = capfd.readouterr().out
    listed = dict(line.split(": ") for line in said.splitlines() if re.match(r"\w+: ", line))
    config = OmegaConf.load(ROOT / "configs" / "config.yaml")
    groups = {name for choice in config.defaults if choice != "_self_" for name in choice if "@" not in name}
    assert groups <= set(listed)
    assert {path.stem for path in RECIPES.glob("*.yaml")} | {"of_my_own"} == set(listed["recipe"].split(", "))
    assert said.count("\n") < 30


def test_the_sentence_of_an_operating_system_error_names_the_file() -> None:
    assert errors.sentence(PermissionError(13, "Permission denied", "/root/x")) == "/root/x: Permission denied"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended, errors.composition_errors():
        (tmp_path / "file").mkdir()
    assert ended.value.code == 2
    assert "file: File exists): set hydra.run.dir to a new folder" in capsys.readouterr().err
