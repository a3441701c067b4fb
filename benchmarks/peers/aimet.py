"""AIMET (Qualcomm), version 2."""

from __future__ import annotations

from torch import Tensor, nn

PACKAGES = ("aimet-torch", "torchvision")
SETTINGS = "QuantizationSimModel(W8, A8) after model_preparer.prepare_model: every scale and offset learned"


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.v2.quantsim import QuantizationSimModel

    simulation = QuantizationSimModel(
        prepare_model(network.eval()), dummy_input=x, default_param_bw=8, default_output_bw=8
    )
    simulation.compute_encodings(lambda model, _: model(x), None)
    return simulation.model
