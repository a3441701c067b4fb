"""torchao, PT2E."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PACKAGES = ("torchao", "torch", "numpy")
SETTINGS = "prepare_qat_pt2e, X86InductorQuantizer default QAT config: conv-BN folded in training; observers run on"


def prepare(network: nn.Module, x: Tensor) -> nn.Module:
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(torch.export.export(network.train(), (x,)).module(), quantizer)
    move_exported_model_to_train(prepared)
    prepared(x)
    return prepared
