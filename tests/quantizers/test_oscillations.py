"""Frequencies, directions and frozen codes against algorithm 1 of Nagel et al. 2022, in numpy, one weight at a time."""

import numpy as np
import pytest
import torch

from qat.grid import Grid
from qat.quantizers import LSQ, Oscillations, Static
from qat.spec import QuantSpec

MOMENTUM = 0.1


def algorithm_1(codes: list[int], thresholds: list[float]) -> dict[str, float]:
    """One weight, from its code before the first step to the code after each. A threshold of infinity freezes nothing."""
    last, direction, frequency, average, frozen = codes[0], 0.0, 0.0, float(codes[0]), False
    for code, threshold in zip(codes[1:], thresholds, strict=True):
        if frozen:
            code = last
        oscillates = False
        if code != last:
            change = np.sign(code - last)
            oscillates = direction != 0 and change != direction
            direction = change
        frequency = MOMENTUM * oscillates + (1 - MOMENTUM) * frequency
        average = MOMENTUM * code + (1 - MOMENTUM) * average
        last = code
        if frequency > threshold and not frozen:
            frozen, last = True, int(np.rint(average))
    return {
        "frequency": frequency,
        "average": average,
        "direction": direction,
        "code": last,
        "frozen": frozen,
    }


SEQUENCES = {
    "rests": [3, 3, 3, 3, 3, 3, 3, 3],
    "climbs": [-3, -2, -1, 0, 1, 2, 3, 3],
    "back and forth": [0, 1, 0, 1, 0, 1, 0, 1],
    "first change is none": [0, 1, 1, 1, 1, 1, 1, 1],
    "back after a rest": [0, 1, 1, 1, 1, 1, 0, 0],
    "mostly at 2": [2, 1, 2, 2, 2, 1, 2, 2],
    "leaps": [-7, 7, -7, 7, 7, -7, -7, 7],
}


@pytest.mark.parametrize("thresholds", [[np.inf] * 7, [0.15] * 7, np.linspace(0.3, 0.05, 7).tolist()])
def test_algorithm_1(thresholds: list[float]) -> None:
    codes = torch.tensor(list(SEQUENCES.values()), dtype=torch.float32).T
    state = Oscillations((len(SEQUENCES),))
    state.start(codes[0])
    for now, threshold in zip(codes[1:], thresholds, strict=True):
        state.step(now, MOMENTUM)
        state.freeze(threshold)
    for i, (name, sequence) in enumerate(SEQUENCES.items()):
        for what, expected in algorithm_1(sequence, thresholds).items():
            assert getattr(state, what)[i].item() == pytest.approx(expected, rel=1e-5), (name, what)
    assert state.frozen.any() == (min(thresholds) < 1)


def test_what_is_frozen_keeps_its_code_whatever_comes() -> None:
    state = Oscillations((1,))
    state.start(torch.tensor([0.0]))
    for now in (1.0, 0.0, 1.0, 0.0):
        state.step(torch.tensor([now]), MOMENTUM)
    state.freeze(0.01)
    code = state.code.clone()
    for now in (3.0, -3.0, 3.0, -3.0):
        state.step(torch.tensor([now]), MOMENTUM)
        state.freeze(0.01)
    assert state.frozen.all()
    assert torch.equal(state.code, code)


def test_random_walks() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(-2, 3, (60, 200)) * (generator.random(200) < 0.5)
    thresholds = np.linspace(0.6, 0.3, 59).tolist()
    state = Oscillations((200,))
    state.start(torch.from_numpy(codes[0]).float())
    for now, threshold in zip(codes[1:], thresholds, strict=True):
        state.step(torch.from_numpy(now).float(), MOMENTUM)
        state.freeze(threshold)
    expected = [algorithm_1(column.tolist(), thresholds) for column in codes.T]
    assert 0 < sum(one["frozen"] for one in expected) < 200
    assert state.frozen.tolist() == [one["frozen"] for one in expected]
    assert state.code.tolist() == [one["code"] for one in expected]
    assert torch.allclose(
        state.frequency, torch.tensor([one["frequency"] for one in expected], dtype=torch.float32), atol=1e-6
    )


def test_codes_of_an_unsigned_8_bit_grid_have_room() -> None:
    state = Oscillations((2,), signed=False)
    state.start(torch.tensor([0.0, 255.0]))
    state.step(torch.tensor([255.0, 0.0]), MOMENTUM)
    assert state.code.tolist() == [255, 0]
    assert state.direction.tolist() == [1, -1]


def quantizer(counted: bool) -> LSQ:
    found = LSQ(QuantSpec(Grid(4, narrow=True)), (2, 3))
    found.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    if counted:
        found.oscillations = Oscillations((2, 3))
        found.oscillations.start(torch.tensor([[1.0, -2, 3], [4, 5, -6]]))
        found.oscillations.step(torch.tensor([[2.0, -2, 3], [4, 5, -6]]), MOMENTUM)
        found.oscillations.freeze(0.5)
    return found


def test_the_state_survives_a_state_dict_and_a_second_start() -> None:
    written, read = quantizer(counted=True).state_dict(), quantizer(counted=True)
    assert {name.rpartition(".")[2] for name in written if name.startswith("oscillations.")} == {
        "frequency", "average", "code", "direction", "frozen", "started"
    }  # fmt: skip
    assert written["oscillations.code"].dtype == written["oscillations.direction"].dtype == torch.int8
    read.oscillations = Oscillations((2, 3))
    read.load_state_dict(written)
    assert read.oscillations is not None
    read.oscillations.start(torch.zeros(2, 3))
    assert all(torch.equal(value, written[name]) for name, value in read.state_dict().items())


def test_who_does_not_count_loads_from_who_does_and_the_other_way_round() -> None:
    counted, plain = quantizer(counted=True), quantizer(counted=False)
    plain.load_state_dict(counted.state_dict())
    assert plain.oscillations is None
    counted.oscillations = Oscillations((2, 3))
    counted.load_state_dict(plain.state_dict())
    assert not counted.oscillations.started
    incomplete = {name: value for name, value in quantizer(counted=True).state_dict().items() if "average" not in name}
    with pytest.raises(RuntimeError, match=r"oscillations\.average"):
        counted.load_state_dict(incomplete)


def test_types_stay_in_a_network_of_halves() -> None:
    found = quantizer(counted=True).half()
    assert found.oscillations is not None
    assert found.oscillations.frequency.dtype == torch.float32


def test_dequantize_is_the_inverse_of_quantize_for_every_granularity() -> None:
    from qat.granularity import PerChannel, PerGroup, PerTensor

    for granularity in (PerTensor(), PerChannel(), PerGroup(2)):
        found = Static(QuantSpec(Grid(4), granularity), (3, 4))
        found.set_range(-torch.arange(1.0, found.n_qparams + 1), torch.arange(1.0, found.n_qparams + 1))
        weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        assert torch.equal(found.dequantize(found.quantize(weight)), found(weight))
