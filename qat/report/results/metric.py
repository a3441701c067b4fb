"""The metric of a comparison: its name, which way is better, and how its values are written."""

import math
from dataclasses import dataclass
from typing import Literal

from qat.report.results.json_records import Record

Mode = Literal["min", "max"]
ACCURACY_NAMES = ("acc", "accuracy", "top1", "top-1")


@dataclass(frozen=True)
class MetricInfo(Record):
    """What the rows of a comparison are measured by.

    `percent`: values are fractions in [0, 1] that are written in percent, and their differences in points. `chance` is the
    value of a network whose outputs have nothing to do with the samples. `errors` says where standard errors come from.

    >>> ACCURACY.text(0.9212), ACCURACY.difference(0.0158)
    ('92.12 %', '1.58 points')
    >>> celsius = MetricInfo("mae", "°C", "min", percent=False)
    >>> celsius.text(12.3456), celsius.difference(0.01234), celsius.better(1.0, 2.0)
    ('12.35 °C', '0.01234 °C', True)
    """

    name: str = "top-1"
    unit: str = "%"
    mode: Mode = "max"
    percent: bool = True
    chance: float | None = None
    errors: str = "binomial"

    @property
    def heading(self) -> str:
        """Name and unit, for the head of a column or an axis."""
        return f"{self.name} {self.unit}".strip()

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "lower is better" if self.mode == "min" else "higher is better"

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is strictly better; any number is better than NaN."""
        if math.isnan(value) or math.isnan(other):
            return math.isnan(other) and not math.isnan(value)
        return value < other if self.mode == "min" else value > other

    def rank(self, value: float) -> float:
        """A key for `max`: the better, the larger; NaN is the worst."""
        return -math.inf if math.isnan(value) else -value if self.mode == "min" else value

    def scaled(self, value: float) -> float:
        """The value in its unit: percent of a fraction."""
        return 100 * value if self.percent else value

    def number(self, value: float, error: float | None = None) -> str:
        """The value in its unit, without it: two decimals of a percentage, else two digits of the error, or four in all."""
        if not math.isfinite(value):
            return "not finite" if math.isnan(value) else str(value)
        if self.percent:
            return f"{100 * value:.2f}"
        if error and math.isfinite(error):
            decimals = 1 - math.floor(math.log10(error))
            if 0 <= decimals <= 12 and abs(value) < 1e9:
                return f"{value:.{decimals}f}"
        return f"{value:.4g}"

    def text(self, value: float, error: float | None = None) -> str:
        """The value with its unit, to two digits of `error` if that is given."""
        unit = self.unit if math.isfinite(value) else ""
        return f"{self.number(value, error)} {unit}".strip()

    def difference(self, value: float) -> str:
        """A difference of two values with its unit: points, if they are percentages."""
        return f"{self.number(value)} points" if self.percent else self.text(value)


ACCURACY = MetricInfo()
"""Top-1 accuracy, a fraction."""
