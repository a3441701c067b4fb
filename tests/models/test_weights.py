from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qat.models import LeNet5, ResNetCifar, load_weights, save_weights
from tests.paths import SHARED


@pytest.fixture
def shared() -> Path:
    folder = SHARED
    if not (folder / "checkpoints").is_dir():
        pytest.skip(f"needs the ResNet-20 weights in {folder}/checkpoints (set QAT_SHARED)")
    return folder


class NotWeights:
    """An object that a safe reader refuses to create."""


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet20_cifar10_jpeg"])
def test_the_shared_resnet20_loads_by_name(shared: Path, name: str) -> None:
    model = ResNetCifar(20)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    load_weights(model, shared / "checkpoints" / f"{name}.safetensors")
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(module.running_var.ne(1).any() for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lenet.safetensors"
    saved, loaded = LeNet5(), LeNet5()
    parameter = loaded.conv1.weight
    save_weights(saved, path, {"accuracy": "0.99"})
    load_weights(loaded, path)
    assert same(saved, loaded)
    assert loaded.conv1.weight is parameter
    with safe_open(path, "pt") as file:
        assert file.metadata().items() >= {"accuracy": "0.99"}.items()
    assert [file.name for file in path.parent.iterdir()] == ["lenet.safetensors"]


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "tied.safetensors")
    load_weights(model, tmp_path / "tied.safetensors")
    assert model[1].weight is model[0].weight


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lenet.safetensors"
    save_weights(LeNet5(), path)
    before = path.read_bytes()

    def disk_full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(LeNet5(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prefix", ["", "model.", "network.", "module.", "net.", "model._orig_mod.", "model.module."])
def test_wrappers_prefixes_are_taken_off(tmp_path: Path, prefix: str) -> None:
    saved, loaded = LeNet5(), LeNet5()
    state = {prefix + name: value for name, value in saved.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    load_weights(loaded, tmp_path / "last.ckpt")
    assert same(saved, loaded)


def test_what_a_lightning_module_has_beside_its_network_is_ignored(tmp_path: Path) -> None:
    saved, loaded = LeNet5(), LeNet5()
    state = {f"model.{name}": value for name, value in saved.state_dict().items()}
    state["accuracy.total"] = torch.tensor(3)
    state["teacher.conv1.weight"] = torch.zeros(6, 1, 5, 5)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    load_weights(loaded, tmp_path / "last.ckpt")
    assert same(saved, loaded)


def test_a_network_whose_own_names_begin_with_a_prefix_keeps_them(tmp_path: Path) -> None:
    saved, loaded = (nn.ModuleDict({"model": nn.Linear(2, 3)}) for _ in range(2))
    save_weights(saved, tmp_path / "own.safetensors")
    load_weights(loaded, tmp_path / "own.safetensors")
    assert same(saved, loaded)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 1}])
def test_plain_torch_files_load(tmp_path: Path, wrap: object) -> None:
    saved, loaded = LeNet5(), LeNet5()
    torch.save(wrap(saved.state_dict()), tmp_path / "weights.pth")  # type: ignore[operator]
    load_weights(loaded, tmp_path / "weights.pth")
    assert same(saved, loaded)


def test_another_number_of_classes_is_said_in_classes(tmp_path: Path) -> None:
    path = tmp_path / "ten.safetensors"
    save_weights(ResNetCifar(8), path)
    model = ResNetCifar(8, num_classes=100)
    before = model.conv1.weight.clone()
    with pytest.raises(
        ValueError, match=r"ten.safetensors has 10 classes in 'linear.weight' \(10, 64\), the data have 100:"
    ):
        load_weights(model, path)
    assert torch.equal(model.conv1.weight, before)


def test_other_shapes_are_said_with_the_first_name(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_weights(ResNetCifar(8, width=32), path)
    with pytest.raises(
        ValueError, match=r"'conv1.weight' of shape \(32, 3, 3, 3\), the model of shape \(16, 3, 3, 3\) \(and \d+ more"
    ):
        load_weights(ResNetCifar(8), path)


def test_names_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    save_weights(ResNetCifar(14), path)
    with pytest.raises(
        ValueError,
        match=r"not one of ResNetCifar: 0 names missing, 36 names unexpected \('layer1.1.bn1.bias', .*\.\.\.\)",
    ):
        load_weights(ResNetCifar(8), path)
    state = LeNet5().state_dict()
    del state["fc3.bias"]
    save_file(state, path)
    with pytest.raises(ValueError, match=r"1 names missing \('fc3.bias'\), 0 names unexpected"):
        load_weights(LeNet5(), path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": LeNet5().state_dict(), "hyper_parameters": NotWeights()}, path)
    with pytest.raises(
        ValueError, match=r"evil.ckpt holds pickled objects.*never loaded.*NotWeights.*safetensors.torch.save_file"
    ):
        load_weights(LeNet5(), path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"damaged", "is not a safetensors file"),
        ("a.ckpt", b"", "is not a checkpoint"),
        ("a.pt", b"PK\x03\x04damaged", "is not a checkpoint"),
        ("a.h5", b"", r"ends in '.h5': write a .safetensors, .ckpt, .pt, .pth file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_weights(LeNet5(), tmp_path / name)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty.pt has no state_dict in it"):
        load_weights(LeNet5(), tmp_path / "empty.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*none.ckpt does not exist: write the path of"):
        load_weights(LeNet5(), tmp_path / "none.ckpt")


def test_only_safetensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.pt ends in '.pt': write a name that ends in .safetensors"):
        save_weights(LeNet5(), tmp_path / "a.pt")


def test_codes_are_not_taken_for_weights(tmp_path: Path) -> None:
    state = LeNet5().state_dict()
    name = next(name for name in state if name.endswith("weight"))
    save_file(state | {name: state[name].to(torch.int8)}, tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match=rf"codes\.safetensors has '{name}' in int8, and the model in floating point"):
        load_weights(LeNet5(), tmp_path / "codes.safetensors")
