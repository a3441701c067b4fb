"""Checks of the options of callbacks, before anything runs."""

from __future__ import annotations

from typing import Any

from qat.training.optimization.scale_optimizer import OptimizerFactory, check_optimizer_factory


def check_options(
    calibration_images: int,
    quantizer_lr_ratio: float,
    compile: Any,
    validate_integers: Any,
    quantizer_optimizer: OptimizerFactory | None,
) -> None:
    """Raise ValueError for an impossible option of QuantizationAwareTraining."""
    if calibration_images < 1:
        raise ValueError(f"calibration_images={calibration_images} calibrates nothing: write for example 512.")
    if not quantizer_lr_ratio >= 0:
        raise ValueError(f"quantizer_lr_ratio={quantizer_lr_ratio} is negative: write 1.0, or 0.0 to freeze scales.")
    if not isinstance(compile, bool):
        raise ValueError(f"compile={compile!r} is not possible: write true or false.")
    if not isinstance(validate_integers, bool):
        raise ValueError(f"validate_integers={validate_integers!r} is not possible: write true or false.")
    if quantizer_optimizer is not None:
        check_optimizer_factory(quantizer_optimizer)
        if quantizer_lr_ratio != 1.0:
            raise ValueError(
                f"quantizer_lr_ratio={quantizer_lr_ratio} beside a quantizer_optimizer, which has a learning rate of its "
                "own: write one of the two."
            )
