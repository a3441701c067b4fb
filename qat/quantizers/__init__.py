"""How scale and rounding learn: one paper a file. Adding one costs a file here and a YAML in `configs/quantizer/`."""

from qat.quantizers.base import Mode, Quantizer
from qat.quantizers.lsq import LSQ
from qat.quantizers.static import Static

__all__ = ["LSQ", "Mode", "Quantizer", "Static"]
