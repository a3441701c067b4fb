"""Damaged and foreign files of every format that is read, made from small good ones, and what reading them does.

`python -m tests.reading.fuzzed_files COUNT FOLDER` reads COUNT of them with little memory to spare, and prints what is wrong.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

import qat
from qat.data.image_files import open_image
from qat.data.mnist import MNIST_DATASET
from qat.experiment.check import check_same_run
from qat.experiment.configuration import compose
from qat.kernels.cpu import build, load_kernels
from qat.models import LeNet5, load_weights, save_weights
from qat.reading.array_file import read_arrays
from qat.reading.checkpoint import read_checkpoint
from qat.report.results.results_file import read_results
from qat.training.checkpoint.latest import checkpoint_to_resume
from qat.transform.policy_record import BUILT_FROM_KEY, CHECKPOINT_KEY, describe_prepared
from tests.paths import ROOT

MEMORY = 2 << 30
"""Bytes that reading may take beside what the program has when it begins."""
RECIPE = "digits_w8a8"
EVIL = "import pathlib; pathlib.Path({mark!r}).touch()\nclass Q: pass\n"
STRANGE = (
    *(None, True, -1, 10**9, 2**63, 1e308, float("nan"), "", "evil.Q", "os.system", "../../etc/passwd", "x" * 5000),
    *(
        [],
        {},
        [[]],
        {"_target_": "evil.Q"},
        {"_target_": "os.system", "command": "touch evil_was_here"},
        [10**6, 10**6],
    ),
)
"""Values that are put in the place of others."""


class Network(nn.Module):
    """Small, with every part that a file can name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


class Format(NamedTuple):
    """A kind of file. read: returns what the file means, or raises; checked: it has a checksum, so it means nothing else."""

    file: str
    read: Callable[[Path], Any]
    checked: bool = False


def formats(folder: Path) -> list[Format]:
    """Write a good file of each format into `folder`."""
    torch.manual_seed(0)
    network, pixels = Network().eval(), torch.randn(2, 1, 8, 8)
    prepared = qat.prepare(network, "w4a8", pixels)
    qat.calibrate(prepared, [pixels])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, pixels[:1], folder / "model.onnx")
    _write_checkpoint(folder / "qat.ckpt")
    save_weights(network, folder / "float.safetensors")
    torch.save(network.state_dict(), folder / "float.pt")
    torch.save(network.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "policy.yaml").write_text(yaml.safe_dump(qat.load_policy("w4a8").to_dict()))
    shutil.copy(ROOT / f"benchmarks/results/{RECIPE}.json", folder / "results.json")
    picture = Image.fromarray(torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8).numpy())
    for suffix in ("png", "jpg", "bmp", "webp", "tiff", "ppm"):
        picture.save(folder / f"picture.{suffix}")
    found = [
        Format("model.onnx", lambda path: _verified(path, integer, pixels)),
        Format("qat.ckpt", lambda path: _digest(qat.load_checkpoint(path)), checked=True),
        Format("qat.ckpt", _resumed, checked=True),
        Format("float.safetensors", lambda path: _loaded(path, needs_checksum=True), checked=True),
        Format("float.pt", _loaded, checked=True),
        Format("old.pth", _loaded),
        Format("policy.yaml", lambda path: qat.load_policy(path).to_dict()),
        Format("results.json", lambda path: read_results(path).to_dict()),
        *(Format(p.name, lambda path: open_image(path, 3).tobytes()) for p in sorted(folder.glob("picture.*"))),
        Format("inputs.npy", lambda path: read_arrays(path).tolist()),
        Format("inputs.npz", lambda path: {name: x.tolist() for name, x in read_arrays(path).items()}, checked=True),
        Format("train-images-idx3-ubyte", _mnist),
        Format("train-labels-idx1-ubyte", _mnist),
        Format("config.yaml", _configuration),
    ]
    np.save(folder / "inputs.npy", pixels.numpy())
    np.savez(folder / "inputs.npz", x=pixels.numpy())
    _write_mnist(folder)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(compose("resume=config.yaml"), resolve=True))
    if load_kernels() is not None:
        (folder / "one.c").write_text("int one(void) { return 1; }")
        library = build.shared_library(folder / "one.c")
        shutil.copy(library, folder / library.name)
        found.append(Format(library.name, lambda path: build.load_checked(path).one(), checked=True))
    return found


def _write_checkpoint(path: Path) -> None:
    """What a fit writes, small."""
    network = LeNet5(10, 1)
    prepared = qat.prepare(network, "w4a8", pixels := torch.randn(2, 1, 28, 28))
    qat.calibrate(prepared, [pixels])
    content = {
        "epoch": 1,
        "global_step": 3,
        "state_dict": {f"network.{name}": value for name, value in prepared.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "callbacks": {},
        "hyper_parameters": {"lr": 0.1, "_instantiator": "evil.Q"},
        CHECKPOINT_KEY: describe_prepared(prepared, qat.load_policy("w4a8"), "network", None),
        BUILT_FROM_KEY: {"_target_": "qat.models.LeNet5", "num_classes": 10, "in_channels": 1},
    }
    torch.save(content, path)


def _write_mnist(folder: Path) -> None:
    """MNIST's files, with three images."""
    for part in ("train", "t10k"):
        header, labels = bytes([0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 28, 0, 0, 0, 28]), bytes([0, 0, 8, 1, 0, 0, 0, 3])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(range(252)) * 9 + bytes(84))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels + bytes([1, 2, 3]))


def _mnist(path: Path) -> Any:
    """Beside three good files."""
    good = path.parent.parent / "good"
    raw = path.parent / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        shutil.copy(path if path.name == name else good / name, raw / name)
    try:
        return [images.labels.tolist() for images in MNIST_DATASET._read_with_torchvision(path.parent / "mnist")]
    except FileNotFoundError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _configuration(path: Path) -> None:
    """Of the run whose checkpoint is resumed: it lies beside it."""
    config = compose("resume=config.yaml")
    check_same_run(config, path.parent / "some.ckpt")


def _verified(path: Path, integer: nn.Module, pixels: Tensor) -> None:
    qat.verify(path)
    qat.verify(path, integer, [pixels])


def _resumed(path: Path) -> str:
    content = read_checkpoint(checkpoint_to_resume(path))
    return _digest_of(content["state_dict"])


def _loaded(path: Path, needs_checksum: bool = False) -> str:
    load_weights(network := Network(), path, needs_checksum)
    return _digest(network)


def _digest(network: nn.Module) -> str:
    return _digest_of(network.state_dict())


def _digest_of(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Damage --------------------------------------------------------------------------------------------------------------


def damaged(content: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Cut off, with flipped bits, with zeros, with a part of another file, or another file as a whole."""
    place = chance.randrange(len(content))
    match chance.choice(("cut", "flip", "flip", "zero", "splice", "other", "append")):
        case "cut":
            return content[:place]
        case "flip":
            changed = bytearray(content)
            for _ in range(chance.choice((1, 1, 8))):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            return bytes(changed)
        case "zero":
            return content[:place] + bytes(min(200, len(content) - place)) + content[place + 200 :]
        case "splice":
            other = chance.choice(others)
            start = chance.randrange(len(other))
            return content[:place] + other[start : start + 500] + content[place + chance.choice((0, 500)) :]
        case "other":
            return chance.choice(others)
    return content + chance.choice(others)


def mistyped(path: Path, chance: random.Random) -> bool:
    """Write the file again with a strange value somewhere inside. Returns whether this format has values."""
    if path.suffix in (".yaml", ".json"):
        content = yaml.safe_load(path.read_text())
        _replace(content, chance)
        path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))
    elif path.suffix in (".ckpt", ".pt", ".pth"):
        content = dict(torch.load(path, weights_only=True))
        _replace(content, chance)
        torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".pth")
    elif path.suffix == ".onnx":
        model = onnx.load(str(path))
        tensor, node = chance.choice(model.graph.initializer), chance.choice(model.graph.node)
        match chance.randrange(6):
            case 0:
                tensor.dims[:] = [10**6, 10**6]
            case 1:
                tensor.data_type = chance.choice((0, 1, 6, 7, 99))
            case 2:
                node.op_type = chance.choice(("Evil", "ConstantOfShape", ""))
            case 3:
                model.metadata_props[chance.randrange(len(model.metadata_props))].value = "{"
            case 4:
                del node.input[:]
            case 5:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value="../../etc/passwd")
        path.write_bytes(model.SerializeToString())
    else:
        return False
    return True


def _replace(content: Any, chance: random.Random) -> None:
    """Put a strange value somewhere into nested dicts and lists, in place."""
    places: list[tuple[Any, Any]] = []

    def collect(part: Any, shares: int = 1) -> None:
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
        for key in keys:
            places.extend([(part, key)] * shares)
            # what only this project reads counts more than hundreds of weights
            collect(part[key], 20 if key in (CHECKPOINT_KEY, BUILT_FROM_KEY) else shares)

    collect(content)
    part, key = chance.choice(places)
    if isinstance(part, dict) and chance.random() < 0.25:
        del part[key]
    else:
        part[key] = copy.deepcopy(chance.choice(STRANGE))


# Reading -------------------------------------------------------------------------------------------------------------


def faults(count: int, folder: Path) -> Iterator[str]:
    """Read `count` bad files and say what should not have happened."""
    good = folder / "good"
    good.mkdir(parents=True)
    kinds = formats(good)
    others = [path.read_bytes() for path in sorted(good.iterdir()) if path.is_file()]
    expected = {i: kind.read(_copied(good, kind, folder / "whole")) for i, kind in enumerate(kinds)}
    mark = _plant(folder)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(count):
        index, chance = number % len(kinds), random.Random(number)
        kind = kinds[index]
        path = _copied(good, kind, folder / f"bad{number}")
        original = path.read_bytes()
        has_values = chance.random() < 0.5 and mistyped(path, chance)
        if not has_values:
            path.write_bytes(damaged(original, others, chance))
        print("reading", path, file=sys.stderr, flush=True)
        yield from _fault(path, kind, expected[index], has_values or path.read_bytes() == original)
        if mark.exists() or "evil" in sys.modules or Path("evil_was_here").exists():
            yield f"{path}: code was executed"
            return


def _fault(path: Path, kind: Format, expected: Any, may_differ: bool) -> Iterator[str]:
    before = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.read(path)
    except (ValueError, OSError, build.BuildError) as error:
        text = str(error)
        if type(error) is UnicodeDecodeError or "\n" in text or path.name not in text:
            yield f"{path}: {type(error).__name__}: {text!r}"
    except Exception as error:
        yield f"{path}: {type(error).__name__}: {error!r}"
    else:
        if kind.checked and not may_differ and found != expected:
            yield f"{path}: silently means something else"
        if path.read_bytes() != before:
            yield f"{path}: was changed"


def _copied(good: Path, kind: Format, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(good / kind.file, folder / kind.file)
    (folder / kind.file).chmod(0o600)
    return folder / kind.file


def _plant(folder: Path) -> Path:
    """A module on the path that leaves a mark if it is imported."""
    mark, module = folder / "mark", folder / "modules" / "evil.py"
    module.parent.mkdir()
    module.write_text(EVIL.format(mark=str(mark)))
    sys.path.insert(0, str(module.parent))
    return mark


def main(arguments: Mapping[int, str] | list[str]) -> None:
    """Print every fault, and the largest memory at the end."""
    torch.set_num_threads(1)
    for fault in faults(int(arguments[1]), Path(arguments[2])):
        print("FAULT", fault, flush=True)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main(sys.argv)
