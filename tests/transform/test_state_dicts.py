"""State dicts between networks that were prepared or calibrated differently: never other numbers without a word."""

from pathlib import Path

import pytest
import torch
from torch import nn

import qat


def calibrated(policy: str = "w8a8", size: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    prepared = qat.prepare(network, policy)
    qat.calibrate(prepared, [torch.randn(8, 4) * size])
    return prepared.eval()


def test_a_state_dict_of_other_bits_is_refused(tmp_path: Path) -> None:
    torch.save(calibrated("w8a8").state_dict(), tmp_path / "state.pt")
    state, other = torch.load(tmp_path / "state.pt", weights_only=True), calibrated("w4a8")
    with pytest.raises(
        RuntimeError, match=r"2\.weight_quantizer of 4 bits \(in the state dict it has 8: prepare the network with"
    ):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    with pytest.raises(RuntimeError, match=r"'2\.weight' has no range yet: call qat\.calibrate"):
        other(torch.randn(2, 4))


def test_a_state_dict_of_the_same_bits_is_loaded_whatever_they_were_for_a_while() -> None:
    first, second = calibrated("w4a8"), calibrated("w4a8", 3.0)
    for quantizer in qat.transform.quantizers(second).values():
        quantizer.set_bits(8)
    second.load_state_dict(first.state_dict())
    assert all(quantizer.ready for quantizer in qat.transform.quantizers(second).values())


def test_an_integer_model_keeps_its_own_numbers() -> None:
    first, second = (qat.convert(calibrated(size=size)) for size in (1.0, 3.0))
    first.load_state_dict(first.state_dict())
    with pytest.raises(
        ValueError, match=r"of another integer model \(.* differs\) lacks the scales of its codes: load"
    ):
        second.load_state_dict(first.state_dict())
