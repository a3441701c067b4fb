"""torch.ao.quantization, FX graph mode: part of torch, deprecated."""

from __future__ import annotations

from torch import Tensor, nn

PACKAGES: tuple[str, ...] = ()
SETTINGS = (
    "prepare_qat_fx, get_default_qat_qconfig_mapping('x86'): fused conv-BN-ReLU; observers run on, scales not learned"
)


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    prepared = prepare_qat_fx(network.train(), get_default_qat_qconfig_mapping("x86"), (x,))
    prepared(x)
    return prepared
