"""`qat.load_checkpoint`: in another process, from the file alone."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.experiment.image_classifier import ImageClassifier
from qat.models import ResNetCifar
from qat.training.callbacks import QuantizationAwareTraining
from qat.transform import is_prepared, quantizers
from tests.paths import ROOT
from tests.training.importable_modules import WithHyperparameters, WithoutHyperparameters
from tests.training.user_modules import CLASSES, LIGHTNING, Data, ModuleAsNetwork, Net, images, trainer

pytestmark = LIGHTNING

POLICY = {
    "preset": "w4a4",
    "residual_bits": None,
    "activation": {"symmetric": False, "observer": {"_target_": "Percentile", "percentile": 99.0}},
    "rules": {"head": {"match": "*head", "weight": {"bits": 2, "granularity": "per_group", "group_size": 4}}},
}
"""A policy that uses every kind of option."""


class Trained:
    """A checkpoint, some images, and the outputs of the trained network for them."""

    def __init__(self, folder: Path, model: L.LightningModule, policy: Any = POLICY) -> None:
        callback = QuantizationAwareTraining(policy, quantizer_lr_ratio=0.01, calibration_images=64)
        fitting = trainer(folder, callback)
        fitting.fit(model, datamodule=Data())
        self.path, self.folder = folder / "trained.ckpt", folder
        fitting.save_checkpoint(self.path)
        self.network, self.pixels = callback.network_of(model).eval(), images(16, 3).tensors[0]
        self.expected = self.outputs_of(self.network)

    def outputs_of(self, network: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = network(self.pixels)
        return found


def changed(path: Path, name: str, **changes: Any) -> Path:
    """The checkpoint with other entries."""
    content = {**torch.load(path, weights_only=True), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, path.with_name(name))
    return path.with_name(name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("saved"), WithHyperparameters(hidden=8))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained like train.py does."""
    options = {"depth": 8, "num_classes": CLASSES, "in_channels": 1, "width": 4}
    module = ImageClassifier(
        ResNetCifar(**options),
        CLASSES,
        functools.partial(torch.optim.SGD, lr=0.01),
        built_from={"_target_": "qat.models.ResNetCifar", **options},
    )
    return Trained(tmp_path_factory.mktemp("recipe"), module, "w4a8")


ELSEWHERE = """
import sys
sys.path[:0] = {paths}
import qat, torch
pixels, of_recipe, of_module = torch.load("expected.pt")

network = qat.load_checkpoint({recipe})  # nothing but the file
assert torch.equal(network(pixels), of_recipe)
qat.export_onnx(qat.convert(network), pixels[:1], "model.onnx")
heavy = {{name.partition(".")[0] for name in sys.modules}} & {{"lightning", "hydra"}}

from tests.training.importable_modules import WithHyperparameters
module = qat.load_checkpoint({module}, WithHyperparameters)
assert not module.training and module.hparams.hidden == 8
assert torch.equal(module(pixels), of_module)
print(type(network).__name__, type(module).__name__, sorted(heavy))
"""


@pytest.mark.slow
def test_a_new_process_predicts_the_same_from_the_file(recipe: Trained, saved: Trained, tmp_path: Path) -> None:
    torch.save((saved.pixels, recipe.expected, saved.expected), tmp_path / "expected.pt")
    paths = [str(ROOT)]
    code = ELSEWHERE.format(paths=paths, recipe=repr(str(recipe.path)), module=repr(str(saved.path)))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=2) == ["ResNetCifar", "WithHyperparameters", "[]\n"]
    assert (tmp_path / "model.onnx").is_file()


def test_a_network_is_copied_and_prepared(saved: Trained) -> None:
    given = WithHyperparameters(hidden=8).net
    found = qat.load_checkpoint(saved.path, given)
    assert torch.equal(saved.outputs_of(found), saved.expected)
    assert not is_prepared(given)
    module = qat.load_checkpoint(saved.path, WithHyperparameters(hidden=8))
    assert isinstance(module, WithHyperparameters)
    assert torch.equal(saved.outputs_of(module), saved.expected)


def test_the_loaded_module_has_the_trained_state(saved: Trained) -> None:
    found = qat.load_checkpoint(saved.path, WithHyperparameters)
    assert isinstance(found, WithHyperparameters)
    state, trained = found.net.state_dict(), saved.network.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], value) for name, value in trained.items())
    ours, theirs = quantizers(found.net), quantizers(saved.network)
    assert {name: q.extra_repr() for name, q in ours.items()} == {name: q.extra_repr() for name, q in theirs.items()}
    assert {name: q.spec for name, q in ours.items()} == {name: q.spec for name, q in theirs.items()}
    integer, expected = qat.convert(found.net), qat.convert(copy.deepcopy(saved.network))
    assert torch.equal(saved.outputs_of(integer), saved.outputs_of(expected))


def test_a_module_that_is_itself_the_network(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ModuleAsNetwork())
    found = qat.load_checkpoint(trained.path, ModuleAsNetwork)
    assert torch.equal(trained.outputs_of(found), trained.expected)


def test_a_module_without_saved_hyperparameters_gets_them_as_keywords(tmp_path: Path) -> None:
    trained = Trained(tmp_path, WithoutHyperparameters(lr=0.02))
    found = qat.load_checkpoint(trained.path, WithoutHyperparameters, lr=0.5)
    assert isinstance(found, WithoutHyperparameters)
    assert found.lr == 0.5
    assert torch.equal(trained.outputs_of(found), trained.expected)
    with pytest.raises(
        ValueError,
        match=r"^WithoutHyperparameters cannot be built \(.*'lr'\): pass what the checkpoint does not remember, "
        r"qat\.load_checkpoint\(path, WithoutHyperparameters, name=value\), or call self\.save_hyperparameters\(\) in its "
        "__init__",
    ):
        qat.load_checkpoint(trained.path, WithoutHyperparameters)


def test_load_from_checkpoint_of_lightning_fails_with_missing_quantizers(saved: Trained) -> None:
    """The reason for `qat.load_checkpoint`."""
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*weight_quantizer"):
        WithHyperparameters.load_from_checkpoint(saved.path)


class Executed:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was executed",)


def test_a_wrong_file_is_an_error_of_one_sentence(saved: Trained, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt does not exist: give a \.ckpt file"):
        qat.load_checkpoint(tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt"):
        qat.load_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": Net().state_dict()}, tmp_path / "float.ckpt")
    with pytest.raises(ValueError, match=r"holds no policy, so no quantizers: load it into the float network"):
        qat.load_checkpoint(tmp_path / "float.ckpt", Net())
    torch.save({"state_dict": {}, "hyper_parameters": Executed()}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match=r"holds pickled objects, which could run code and are never loaded"):
        qat.load_checkpoint(tmp_path / "pickle.ckpt", WithHyperparameters)
    with pytest.raises(ValueError, match=r"does not say what its network is built from: pass it"):
        qat.load_checkpoint(saved.path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_codes_are_not_taken_for_weights(dtype: torch.dtype, saved: Trained, tmp_path: Path) -> None:
    content = torch.load(saved.path, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("weight"))
    content["state_dict"][name] = content["state_dict"][name].to(dtype)
    torch.save(content, tmp_path / "other.ckpt")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"has '.*weight' in {kind}, and the model in floating point"):
        qat.load_checkpoint(tmp_path / "other.ckpt", WithHyperparameters(hidden=8))


def test_a_module_that_does_not_fit_the_file_is_an_error_of_one_sentence(saved: Trained) -> None:
    with pytest.raises(ValueError, match=r"is not one of Net \(.*size mismatch.*\): pass the class, or the network"):
        qat.load_checkpoint(saved.path, Net())
    with pytest.raises(
        ValueError, match=r"with its network in 'net', where ModuleAsNetwork has nothing: pass the class"
    ):
        qat.load_checkpoint(saved.path, ModuleAsNetwork)
    with pytest.raises(ValueError, match=r"lr cannot be set: Net is already built; pass its class"):
        qat.load_checkpoint(saved.path, Net(), lr=1.0)


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "antigravity.Net", "torch.nn.init.zeros_", "eval", ""]
)
def test_nothing_in_a_foreign_file_is_called(target: str, recipe: Trained) -> None:
    path = changed(recipe.path, "foreign.ckpt", built_from={"_target_": target, "command": "false"})
    with pytest.raises(
        ValueError, match=r"foreign\.ckpt (says|does not say).* (which is not a network of qat|pass the network)"
    ):
        qat.load_checkpoint(path)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "antigravity.Quantizer"},
        {"_target_": "qat.quantizers.LSQ", "estimator": {"_target_": "antigravity.Quantizer"}},
        {"_target_": "qat.quantizers.LSQ", "estimator": "antigravity.Quantizer"},
    ],
    ids=["quantizer", "estimator", "estimators_name"],
)
def test_nothing_that_a_foreign_file_names_is_imported(part: dict[str, Any], recipe: Trained) -> None:
    record = torch.load(recipe.path, weights_only=True)["qat"]
    record["policy"]["rules"]["all"]["weight"]["quantizer"] = part
    path = changed(recipe.path, "foreign.ckpt", qat=record)
    with pytest.raises(
        ValueError, match=r"foreign\.ckpt .*antigravity\.Quantizer is not a class of qat.* allow=\[Quantizer\]"
    ):
        qat.load_checkpoint(path)
    assert "antigravity" not in sys.modules


def test_a_network_class_of_the_user_is_built_if_the_caller_allows_it(tmp_path: Path) -> None:
    module = ImageClassifier(
        Net(), CLASSES, functools.partial(torch.optim.SGD, lr=0.01), built_from={"_target_": f"{Net.__module__}.Net"}
    )
    trained = Trained(tmp_path, module)
    with pytest.raises(ValueError, match=r"built from .*\.Net, which is not a network of qat: .* allow=\[Net\]"):
        qat.load_checkpoint(trained.path)
    assert torch.equal(trained.outputs_of(qat.load_checkpoint(trained.path, allow=[Net])), trained.expected)
