import pytest

from qat import Grid

GOLDEN = [
    # bits, signed, narrow, qmin, qmax
    (2, True, False, -2, 1),
    (2, True, True, -1, 1),
    (3, True, True, -3, 3),
    (4, True, False, -8, 7),
    (4, True, True, -7, 7),
    (4, False, False, 0, 15),
    (8, True, False, -128, 127),
    (8, True, True, -127, 127),
    (8, False, False, 0, 255),
    (8, False, True, 1, 255),
    (1, False, False, 0, 1),
]


@pytest.mark.parametrize(("bits", "signed", "narrow", "qmin", "qmax"), GOLDEN)
def test_codes(bits: int, signed: bool, narrow: bool, qmin: int, qmax: int) -> None:
    grid = Grid(bits, signed, narrow)
    assert (grid.qmin, grid.qmax) == (qmin, qmax)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_narrow_signed_grid_is_the_same_for_x_and_minus_x(bits: int) -> None:
    grid = Grid(bits, narrow=True)
    assert grid.qmin == -grid.qmax


IMPOSSIBLE = [(1, True), (9, True), (4.0, True), ("4", True), (None, True), (0, False), (-4, False), (True, False)]


@pytest.mark.parametrize(("bits", "signed"), IMPOSSIBLE)
def test_an_impossible_width_says_what_to_write(bits: object, signed: bool) -> None:
    with pytest.raises(ValueError, match="write a whole number") as error:
        Grid(bits, signed)  # type: ignore[arg-type]
    message = str(error.value)
    assert message.startswith(f"bits={bits!r} is not a valid width for {'a signed' if signed else 'an unsigned'} grid")
    assert f"from {2 if signed else 1} to 8" in message


def test_grids_are_values() -> None:
    assert Grid(4) == Grid(4, signed=True)
    assert len({Grid(4), Grid(4), Grid(4, narrow=True)}) == 2
