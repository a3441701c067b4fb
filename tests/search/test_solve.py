"""The integer program against brute force over all choices."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qat.search import Choice, Link, Option, solve
from qat.search.solve import InfeasibleError, Problem


def random_problem(seed: int) -> Problem:
    """Five layers of 2 to 4 widths of weights and 1 or 2 of inputs, some of which share a weight or an input."""
    random = np.random.default_rng(seed)
    choices = []
    for layer in range(5):
        weights, inputs = [2, 3, 4, 8][: random.integers(2, 5)], [4, 8][: random.integers(1, 3)]
        if layer in (1, 3):  # linked below, so of the same widths
            weights, inputs = [2, 4, 8], [4, 8]
        if layer in (2, 4):
            weights, inputs = [2, 8], [4, 8]
        elements, multiply_adds = random.integers(1, 50, 2)
        choices.append(
            Choice(
                f"layer{layer}",
                [
                    Option(w, a, float(random.random() / w), {"size": elements * w / 8, "bops": multiply_adds * w * a})
                    for w, a in product(weights, inputs)
                ],
            )
        )
    return Problem(choices, [Link(1, 3, "activation"), Link(2, 4, "weight")], {"size": 3.0})


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    problem = random_problem(5)  # one of those for which HiGHS prints a line
    solve(problem, {"size": 0.9 * sum(max(o.costs["size"] for o in c.options) for c in problem.choices)})
    assert capfd.readouterr().out == ""


def brute_force(problem: Problem, limits: dict[str, float]) -> float | None:
    """The smallest sum of harms over all choices that keep the limits and the links."""
    best = None
    for options in product(*(choice.options for choice in problem.choices)):
        same = all(getattr(options[a], tensor) == getattr(options[b], tensor) for a, b, tensor in problem.links)
        sums = {
            name: problem.constant.get(name, 0.0) + sum(option.costs[name] for option in options) for name in limits
        }
        if same and all(sums[name] <= limit for name, limit in limits.items()):
            harm = sum(option.harm for option in options)
            best = harm if best is None else min(best, harm)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_integer_program_finds_what_brute_force_finds(seed: int) -> None:
    problem = random_problem(seed)
    middle = {name: problem.costs([c.options[0] for c in problem.choices])[name] for name in ("size", "bops")}
    for factors in ((1.0, 9.0), (1.5, 2.0), (2.5, 1.4), (9.0, 9.0)):
        limits = {name: middle[name] * factor for name, factor in zip(("size", "bops"), factors, strict=True)}
        wanted = brute_force(problem, limits)
        assert wanted is not None
        found = solve(problem, limits)
        assert [option in choice.options for choice, option in zip(problem.choices, found, strict=True)] == [True] * 5
        assert found[1].activation == found[3].activation
        assert found[2].weight == found[4].weight
        assert all(problem.costs(found)[name] <= limit * (1 + 1e-6) for name, limit in limits.items())
        assert sum(option.harm for option in found) == pytest.approx(wanted, rel=1e-6)


def test_limits_that_exclude_each_other_are_refused() -> None:
    problem = random_problem(0)
    with pytest.raises(InfeasibleError, match="no choice of bits keeps size=1 together"):
        solve(problem, {"size": 1.0})


def test_four_hundred_layers_take_a_moment() -> None:
    random = np.random.default_rng(0)
    elements = random.integers(100, 10_000, 400)
    choices = [
        Choice(str(i), [Option(w, None, float(random.random() / 4**w), {"size": n * w / 8}) for w in (2, 3, 4, 8)])
        for i, n in enumerate(elements)
    ]
    found = solve(Problem(choices), {"size": float(elements.sum()) * 3.5 / 8})
    assert sum(option.costs["size"] for option in found) <= elements.sum() * 3.5 / 8


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_better_and_no_limit_is_exceeded_whatever_the_magnitudes(seed: int) -> None:
    """Harms over fifteen orders of magnitude and layers over five, at limits just below what some choice takes."""
    random = np.random.default_rng(seed + 34)
    choices = []
    for layer in range(6):
        elements, worst = int(10 ** random.uniform(2, 7)), 10 ** random.uniform(-9, 1)
        harms = [worst * random.uniform(0.5, 1) * 4.0 ** (8 - width) for width in (2, 4, 8)]
        widths = zip((2, 4, 8), harms, strict=True)
        choices.append(Choice(str(layer), [Option(w, None, harm, {"size": elements * w / 8}) for w, harm in widths]))
    problem = Problem(choices, (), {"size": 1234.0})
    everything = [(problem.costs(options)["size"], options) for options in product(*(c.options for c in choices))]
    sizes = sorted({size for size, _ in everything})
    for limit in (sizes[0], sizes[len(sizes) // 3] - 0.01, sizes[len(sizes) // 2] - 0.01, sizes[-2]):
        wanted = min(sum(o.harm for o in options) for size, options in everything if size <= limit)
        found = solve(problem, {"size": limit})
        assert problem.costs(found)["size"] <= limit
        assert sum(option.harm for option in found) == pytest.approx(wanted, rel=1e-8)
