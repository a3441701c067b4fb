"""Checks of the options of `QuantizationAwareTraining`, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import NoneType
from typing import Any

from qat.arguments import check_kind
from qat.training.optimization.scale_optimizer import check_optimizer_factory
from qat.transform.calibrate import check_batches


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of `QuantizationAwareTraining`, by name; `load_policy` checks the policy.

    Raises:
        ValueError: one is of another kind, or out of range, or the scales have two learning rates.
    """
    check_kind("network", options["network"], (str, NoneType), "the name of a submodule, as 'backbone'")
    check_kind("inputs", options["inputs"], (Callable, NoneType), "a function from a batch to the network's inputs")
    check_kind("calibration_seed", options["calibration_seed"], (Integral,), "a whole number, as 0")
    for name in ("compile", "validate_integers"):
        check_kind(name, options[name], (bool,), "true or false")
    if options["batches"] is not None:
        check_batches(options["batches"])
    images, ratio = options["calibration_images"], options["quantizer_lr_ratio"]
    check_kind("calibration_images", images, (Integral,), "a number of images, as 512")
    if images < 1:
        raise ValueError(f"calibration_images={images} calibrates nothing: write for example 512.")
    check_kind("quantizer_lr_ratio", ratio, (Real,), "1.0, or 0.0 to freeze scales")
    if not 0 <= ratio < math.inf:
        what = "negative" if ratio < 0 else "not finite"
        raise ValueError(f"quantizer_lr_ratio={ratio} is {what}: write 1.0, or 0.0 to freeze scales.")
    if options["quantizer_optimizer"] is not None:
        check_optimizer_factory(options["quantizer_optimizer"])
        if ratio != 1.0:
            raise ValueError(
                f"quantizer_lr_ratio={ratio} beside a quantizer_optimizer, which has a learning rate of its own: write one of "
                "the two."
            )
