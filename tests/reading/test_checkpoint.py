"""Checkpoints and weights from somebody else: nothing is executed or downloaded, and bombs do not go off."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qat.models import ResNetCifar, load_weights, save_weights, torchvision_model
from qat.reading.archive import check_archive
from qat.reading.array_file import read_arrays
from qat.reading.checkpoint import read_checkpoint, read_without_objects
from qat.transform.checkpoint_record import CheckpointRecord
from qat.transform.class_names import only_known_classes, resolve
from qat.transform.presets import load_policy
from tests.transform.test_load_checkpoint import Executed


def with_pickle(path: Path, content: bytes, filler: bytes = b"", compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive as torch writes it, with this pickle and a storage of these bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", filler)
        archive.writestr("archive/version", "3\n")
    return path


def test_an_archive_that_unpacks_to_much_more_than_it_is_is_refused(tmp_path: Path) -> None:
    bomb = with_pickle(tmp_path / "bomb.ckpt", pickle.dumps({}, 2), bytes(80 << 20), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"bomb\.ckpt is not a checkpoint \(its [\d,]+ bytes declare 83,886,"):
        read_checkpoint(bomb)


def test_two_members_of_one_name_are_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data.pkl", b"2")
    with pytest.raises(ValueError, match="two members have one name"):
        check_archive(file)


def test_pickles_that_only_fill_the_memory_are_refused(tmp_path: Path) -> None:
    fills = b"\x80\x02c__builtin__\nbytearray\nq\x00" + b"J" + struct.pack("<i", 2**31 - 1) + b"\x85R."
    with pytest.raises(ValueError, match=r"a\.ckpt is not a checkpoint \(it calls __builtin__\.bytearray\)"):
        read_checkpoint(with_pickle(tmp_path / "a.ckpt", fills))
    laughs: Any = "ha"
    for _ in range(40):
        laughs = [laughs] * 10
    torch.save({"state_dict": laughs}, tmp_path / "laughs.ckpt")
    with pytest.raises(ValueError, match="more than 5,000,000 values"):
        read_checkpoint(tmp_path / "laughs.ckpt")
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    torch.save(deep, tmp_path / "deep.ckpt")
    with pytest.raises(ValueError, match="nested more than 100 times"):
        read_checkpoint(tmp_path / "deep.ckpt")
    cycle: list[Any] = []
    cycle.append(cycle)
    torch.save(cycle, tmp_path / "cycle.ckpt")
    with pytest.raises(ValueError, match="contains itself"):
        read_checkpoint(tmp_path / "cycle.ckpt")


def test_a_tensor_that_declares_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 16, 1 << 16)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"wide\.pt is not a checkpoint \(its [\d,]+ bytes declare 17,179,869,184"):
        read_checkpoint(tmp_path / "wide.pt")
    torch.save({"w": torch.zeros(1).expand(10)}, tmp_path / "small.pt")  # as some buffers are
    assert read_checkpoint(tmp_path / "small.pt")["w"].tolist() == [0.0] * 10


@pytest.mark.parametrize("junk", [b"\n", bytes(4), b"x" * 1000, b"x" * 70_000, "itself"], ids=len)
def test_other_bytes_around_an_archive_are_an_error(junk: bytes | str, tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "good.ckpt")
    good = (tmp_path / "good.ckpt").read_bytes()
    np.savez(tmp_path / "good.npz", x=np.ones(3))
    arrays = (tmp_path / "good.npz").read_bytes()
    assert read_checkpoint(tmp_path / "good.ckpt").keys() == read_arrays(tmp_path / "good.npz").keys()  # type: ignore[union-attr]
    for name, content, read in (("bad.ckpt", good, read_checkpoint), ("bad.npz", arrays, read_arrays)):
        (tmp_path / name).write_bytes(content + (content if isinstance(junk, str) else junk))
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_one_flipped_bit_of_a_weight_is_an_error(name: str, tmp_path: Path) -> None:
    network, path = nn.Linear(64, 64), tmp_path / name
    if path.suffix == ".pt":
        torch.save(network.state_dict(), path)
    else:
        save_weights(network, path)
    load_weights(nn.Linear(64, 64), path)
    content = bytearray(path.read_bytes())
    place = content.find(network.weight.detach().numpy().tobytes())
    content[place + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name} .*checksum .*does not fit"):
        load_weights(nn.Linear(64, 64), path)


def test_a_cached_file_needs_a_checksum(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "foreign.safetensors")
    load_weights(nn.Linear(2, 2), tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="it has no checksum"):
        load_weights(nn.Linear(2, 2), tmp_path / "foreign.safetensors", needs_checksum=True)


def test_weights_are_read_beside_objects_that_are_not_made(tmp_path: Path) -> None:
    state = OrderedDict(nn.BatchNorm2d(3).state_dict(), parameter=nn.Parameter(torch.ones(2)))
    torch.save(
        {"state_dict": state, "hyper_parameters": Executed(), "dtype": torch.int8, "epoch": 3}, tmp_path / "a.ckpt"
    )
    found = read_without_objects(tmp_path / "a.ckpt")
    assert found["epoch"] == 3
    assert found["dtype"] is torch.int8
    assert found["state_dict"].keys() == state.keys()
    assert all(torch.equal(found["state_dict"][name], value) for name, value in state.items())


class Outer:
    class Inner:
        pass


def test_objects_of_every_kind_are_left_out(tmp_path: Path) -> None:
    kinds = [
        Outer(),
        Outer.Inner(),
        Path("a"),
        nn.Linear(2, 2),
        torch.Size([1]),
        print,
        Outer.Inner,
        {1, 2},
        range(3),
        b"a",
    ]
    torch.save({"hyper_parameters": kinds, "w": torch.ones(2)}, tmp_path / "a.ckpt")
    assert read_without_objects(tmp_path / "a.ckpt")["w"].tolist() == [1.0, 1.0]
    torch.save({"hyper_parameters": Executed()}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.ckpt is not a checkpoint"):
        read_without_objects(tmp_path / "old.ckpt")


def record(network: nn.Module, **built_from: Any) -> CheckpointRecord:
    content = {"state_dict": network.state_dict(), "built_from": built_from}
    return CheckpointRecord(content, load_policy("w4a8"), "", None, None)


def test_nothing_is_downloaded_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def downloads(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", downloads)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", downloads)
    options = {"name": "squeezenet1_1", "num_classes": 3}
    found = record(torchvision_model(**options), _target_="qat.models.torchvision_model", weights="DEFAULT", **options)
    assert type(found.build(Path("a.ckpt"), {}, ())).__name__ == "SqueezeNet"


@pytest.mark.parametrize("options", [{"width": 10**6}, {"num_classes": 10**12}, {"depth": 6 * 10**8 + 2}], ids=str)
def test_a_network_that_is_larger_than_its_weights_is_not_built(options: dict[str, int]) -> None:
    found = record(ResNetCifar(8, width=4), _target_="qat.models.ResNetCifar", **{"depth": 8, "width": 4, **options})
    with pytest.raises(ValueError, match=r"a\.ckpt does not say what its network is built from .*: pass the network"):
        found.build(Path("a.ckpt"), {}, ())


def test_a_name_in_a_file_stands_for_what_is_allowed() -> None:
    from qat.quantizers import LSQ, Quantizer

    class Mine(LSQ):
        pass

    Mine.__qualname__, Mine.__module__ = "Mine", "somewhere.else"
    with only_known_classes([Mine]):
        assert resolve("somewhere.else.Mine", Quantizer)[0] is Mine
        for name in ("LSQ", "qat.quantizers.LSQ", "qat.quantizers.lsq.LSQ"):
            assert resolve(name, Quantizer)[0] is LSQ
        with pytest.raises(ValueError, match=r"tests\.networks\.X is not a class of qat, .* allow=\[X\]"):
            resolve("tests.networks.X", Quantizer)
        with pytest.raises(ValueError, match="is not a quantizer"):
            resolve("qat.observers.MSE", Quantizer)
