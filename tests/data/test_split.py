import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.data import Split


@given(n=st.integers(2, 300), fraction=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_every_image_trains_or_validates_once(n: int, fraction: float, seed: int) -> None:
    split = Split(fraction, seed)
    try:
        train, val = split.train_val(n)
    except ValueError:
        assert round(n * fraction) >= n
        return
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(n))
    assert (len(val) > 0) == (fraction > 0)
    assert train.tolist() == sorted(train.tolist())
    assert val.tolist() == sorted(val.tolist())


@given(n=st.integers(20, 300), limit=st.integers(1, 300))
def test_a_limited_split_is_part_of_the_full_one(n: int, limit: int) -> None:
    train, val = Split(0.2).train_val(n)
    few_train, few_val = Split(0.2, limit_train=limit).train_val(n)
    assert set(few_train.tolist()) <= set(train.tolist())
    assert set(few_val.tolist()) <= set(val.tolist())
    assert len(few_train) == min(limit, len(train))
    assert len(few_val) == max(1, round(len(val) * len(few_train) / len(train)))


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    first = Split(seed=3).train_val(1000)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = Split(seed=3).train_val(1000)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(Split(seed=4).train_val(1000)[1], first[1])


def test_the_split_is_the_same_forever() -> None:
    """An old checkpoint must not be validated on images it was trained on."""
    assert Split().train_val(50_000)[1][:5].tolist() == [1, 11, 23, 39, 44]


def test_limited_test_images_are_spread_over_all() -> None:
    rows = Split(limit_test=100).test(10_000)
    assert len(rows) == len(set(rows.tolist())) == 100
    assert rows.max() > 9000  # files come sorted by class: the first hundred would be one class
    assert Split().test(7).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"val_fraction=1.0 is not in \[0, 1\)"),
        ({"val_fraction": -0.1}, "val_fraction=-0.1"),
        ({"limit_train": 0}, "limit_train=0 leaves no images"),
        ({"limit_test": -3}, "limit_test=-3 leaves no images"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(**options)  # type: ignore[arg-type]


def test_a_split_that_trains_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"val_fraction=0.1 leaves none of 1 training images"):
        Split().train_val(1)
