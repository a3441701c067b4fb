"""`qat.floating_point` against ml_dtypes and torch's own float8 types: every code, every tie, and what lies beside it."""

import ml_dtypes
import numpy as np
import pytest
import torch

from qat.floating_point import FORMATS, exponents, power_of_two_scales, shared_exponents, two_level_scales
from tests.oracles import floating_point as oracle

each = pytest.mark.parametrize("name", FORMATS)
each_of_ml_dtypes = pytest.mark.parametrize("name", oracle.TYPES)
f32 = np.float32


def difficult(values: np.ndarray) -> np.ndarray:
    """All values, the ties between them, the float32 numbers on both sides of each, and what has no neighbours."""
    points = np.unique(values)
    points = np.concatenate([points, (points[1:] + points[:-1]) / 2]).astype(f32)
    beside = [np.nextafter(points, f32(side)) for side in (np.inf, -np.inf)]
    beyond = points.max() * f32([1.01, 1.06, 1.07, 1.5, 2, 1e30])
    tiny = f32([0.0, -0.0, 1e-45, -1e-40, 1.2e-38, 1e-10])
    rng = np.random.default_rng(0)
    return np.concatenate(
        [points, *beside, beyond, -beyond, tiny, rng.normal(size=4000, scale=points.max() / 4).astype(f32)]
    )


@each
def test_rounding_is_that_of_the_format_bit_for_bit(name: str) -> None:
    x = difficult(oracle.values(name))
    found = FORMATS[name].round(torch.from_numpy(x))
    assert np.array_equal(found.numpy(), oracle.rounded(x, name))
    assert FORMATS[name].round(torch.tensor([torch.inf, -torch.inf])).tolist() == [
        FORMATS[name].largest,
        -FORMATS[name].largest,
    ]
    assert torch.isnan(FORMATS[name].round(torch.tensor([torch.nan]))).all()


@pytest.mark.parametrize(("name", "dtype"), [("E4M3", torch.float8_e4m3fn), ("E5M2", torch.float8_e5m2)])
def test_rounding_is_that_of_torch(name: str, dtype: torch.dtype) -> None:
    x = torch.from_numpy(difficult(oracle.values(name)))
    largest = FORMATS[name].largest
    assert torch.equal(FORMATS[name].round(x), x.clamp(-largest, largest).to(dtype).float())


@each
def test_codes_are_ranks_and_say_everything(name: str) -> None:
    values = torch.from_numpy(np.unique(oracle.values(name)))
    codes = FORMATS[name].codes(values)
    highest = len(values) // 2
    assert torch.equal(codes, torch.arange(-highest, highest + 1).float())
    assert torch.equal(FORMATS[name].values(codes), values)
    assert FORMATS[name].highest_code == highest < 2 ** (FORMATS[name].bits - 1)
    assert FORMATS[name].highest_exponent == oracle.EMAX[name]


@each_of_ml_dtypes
def test_bit_patterns_are_those_of_ml_dtypes(name: str) -> None:
    patterns = oracle.patterns(name)
    values = patterns.view(oracle.TYPES[name]).astype(f32)
    found = FORMATS[name].bit_patterns(FORMATS[name].codes(torch.from_numpy(values))).numpy()
    is_negative_zero = (values == 0) & np.signbit(values)
    assert np.array_equal(found, np.where(is_negative_zero, 0, patterns))
    assert is_negative_zero.sum() == 1


def test_e8m0_is_that_of_ml_dtypes_and_of_torch() -> None:
    every = np.arange(256, dtype=np.uint8)
    found = power_of_two_scales(torch.from_numpy(every))
    np.testing.assert_array_equal(found.numpy(), every.view(ml_dtypes.float8_e8m0fnu).astype(f32))
    assert torch.equal(found[:255], torch.from_numpy(every).view(torch.float8_e8m0fnu).float()[:255])


def test_exponents_are_exact_on_both_sides_of_every_power_of_two() -> None:
    powers = f32(2.0) ** np.arange(-126, 128, dtype=f32)
    x = np.concatenate([powers, np.nextafter(powers, f32(np.inf)), np.nextafter(powers[1:], f32(0))])
    assert np.array_equal(exponents(torch.from_numpy(x)).numpy(), np.frexp(x)[1] - 1)


@each
def test_the_shared_exponent_of_a_block(name: str) -> None:
    largest = np.concatenate([f32(2.0) ** np.arange(-126, 128, dtype=f32) * f32(m) for m in (1, 1.5, 1.999999)])
    element = FORMATS[name]
    found = power_of_two_scales(shared_exponents(torch.from_numpy(largest), element)).numpy()
    assert np.array_equal(found, oracle.mx_scales(largest, np.arange(len(largest)), name))
    spoiled = shared_exponents(torch.tensor([0.0, 1e-45, torch.inf, torch.nan]), element)
    assert spoiled.tolist() == [0, 0, 255, 255]


def test_two_levels_of_nvfp4_reach_the_largest_value_and_never_zero() -> None:
    largest = torch.tensor([6.0 * 448, 6.0, 1e-6, 0.0])
    of_blocks, of_tensor = two_level_scales(largest, largest.amax().reshape(1))
    assert of_tensor.tolist() == [1.0]
    assert of_blocks.numpy().view(ml_dtypes.float8_e4m3fn).astype(f32).tolist() == [448.0, 1.0, 2.0**-9, 2.0**-9]
    spoiled, _ = two_level_scales(torch.tensor([1.0, torch.inf]), torch.tensor([torch.inf]))
    assert spoiled.tolist() == [127, 127]
