"""Packed codes against numpy, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qat


def oracle(codes: np.ndarray, bits: int) -> np.ndarray:
    """The documented layout."""
    each = (codes.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(each.reshape(-1).astype(np.uint8), bitorder="little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_every_width_and_length(bits: int, signed: bool) -> None:
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    random = np.random.default_rng(bits)
    for n in (0, 1, 2, 3, 5, 7, 8, 9, 31, 100):
        codes = random.integers(low, high, size=n)
        packed = qat.pack(torch.from_numpy(codes), bits)
        np.testing.assert_array_equal(packed.numpy(), oracle(codes, bits))
        back = qat.unpack(packed, bits, (n,), signed)
        assert back.dtype == (torch.int8 if signed else torch.uint8)
        np.testing.assert_array_equal(back.numpy(), codes)


def test_a_long_tensor_of_any_shape_and_dtype() -> None:
    """More than one chunk: 3 bits cross bytes at its end."""
    codes = torch.randint(-4, 4, (3, 1 << 19, 1))
    packed = qat.pack(codes.float(), 3)
    np.testing.assert_array_equal(packed.numpy(), oracle(codes.numpy(), 3))
    assert torch.equal(qat.unpack(packed, 3, codes.shape, signed=True), codes.to(torch.int8))


def test_a_transposed_tensor_is_packed_in_the_order_of_its_own_axes() -> None:
    codes = torch.arange(12).reshape(3, 4).t()
    assert torch.equal(qat.unpack(qat.pack(codes, 4), 4, (4, 3), signed=False), codes.to(torch.uint8))


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        ([4], 2, "codes from 4 to 4 do not fit into 2 bits"),
        ([-1, 2], 2, "-2 to 1"),
        ([-3], 2, "do not fit"),
        ([0.5], 2, "not whole numbers"),
        ([float("nan")], 2, "not whole numbers"),
        ([0], 9, "from 1 to 8"),
        ([0], True, "from 1 to 8"),
    ],
)
def test_what_does_not_fit_is_refused(codes: list[float], bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qat.pack(torch.tensor(codes), bits)


def test_another_number_of_bytes_is_refused() -> None:
    packed = qat.pack(torch.tensor([1, 2, 3]), 4)
    for shape in ((4, 4), (2,)):
        with pytest.raises(ValueError, match=r"give uint8 of shape"):
            qat.unpack(packed, 4, shape, signed=False)
    with pytest.raises(ValueError, match="float32"):
        qat.unpack(packed.float(), 4, (3,), signed=False)
    with pytest.raises(ValueError, match="bytes is not a tensor"):
        qat.unpack(b"12", 4, (3,), signed=False)  # type: ignore[arg-type]
