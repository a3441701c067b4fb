"""Where to put points and labels so that none hides another."""

from collections.abc import Sequence


def beside_each_other(points: Sequence[tuple[float, float, float]], step: float) -> list[float]:
    """The x of points, moved a little where one would hide another or its whisker.

    Args:
        points: (x, lowest y, highest y) of each.
        step: how far apart they must be, in x.

    >>> beside_each_other([(1.0, 0.0, 2.0), (1.0, 1.0, 3.0), (1.0, 1.0, 2.0), (1.0, 8.0, 9.0)], step=0.5)
    [1.0, 1.5, 0.5, 1.0]
    """
    moved: list[float] = []
    for index, (x, low, high) in enumerate(points):
        others = [
            moved[i]
            for i, (_, other_low, other_high) in enumerate(points[:index])
            if low <= other_high and other_low <= high
        ]
        slots = (x + sign * step * distance for distance in range(len(points)) for sign in (1, -1))
        moved.append(next(place for place in slots if all(abs(place - other) >= 0.999 * step for other in others)))
    return moved


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions as little as needed so that they lie `gap` apart, in the same order.

    Neighbours that are too close merge into a group that keeps its mean, until no two groups touch.

    >>> spread([1.0, 1.0, 5.0], gap=2.0)
    [0.0, 2.0, 5.0]
    """

    def start(group: list[int]) -> float:
        return sum(positions[index] for index in group) / len(group) - gap * (len(group) - 1) / 2

    groups: list[list[int]] = []
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        groups.append([index])
        while len(groups) > 1 and start(groups[-2]) + gap * len(groups[-2]) > start(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = list(positions)
    for group in groups:
        for rank, index in enumerate(group):
            moved[index] = start(group) + gap * rank
    return moved
