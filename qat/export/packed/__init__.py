"""A quantized network as packed codes in a folder: safetensors and a manifest."""

from qat.export.packed.bits import pack, unpack
from qat.export.packed.load import load_quantized
from qat.export.packed.save import save_quantized

__all__ = ["load_quantized", "pack", "save_quantized", "unpack"]
