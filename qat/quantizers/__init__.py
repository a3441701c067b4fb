"""Quantizers: how scale and rounding learn, one paper per file.

A new one needs a file here, a YAML in `configs/quantizer/` and a section in `docs/quantizers.md`.
"""

from qat.quantizers.apot import APoT
from qat.quantizers.base import Quantizer
from qat.quantizers.binary import Binary
from qat.quantizers.dorefa import DoReFa
from qat.quantizers.dynamic import Dynamic, DynamicPerToken
from qat.quantizers.fp8 import FP8
from qat.quantizers.fp8_static import FP8Static
from qat.quantizers.k_means import KMeans
from qat.quantizers.lcq import LCQ
from qat.quantizers.lookup_table import LookupTableQuantizer
from qat.quantizers.lsq import LSQ
from qat.quantizers.lsq_plus import LSQPlus
from qat.quantizers.mode import Mode
from qat.quantizers.mx import MX
from qat.quantizers.n2uq import N2UQ
from qat.quantizers.nf4 import NF4
from qat.quantizers.nvfp4 import NVFP4
from qat.quantizers.oscillations import Oscillations
from qat.quantizers.pact import PACT
from qat.quantizers.powers_of_two import PowersOfTwo
from qat.quantizers.qil import QIL
from qat.quantizers.sawb import SAWB
from qat.quantizers.scaled_float import ScaledFloat
from qat.quantizers.static import Static
from qat.quantizers.table import LookupTable
from qat.quantizers.ternary import Ternary
from qat.quantizers.tqt import TQT

__all__ = [
    "FP8",
    "LCQ",
    "LSQ",
    "MX",
    "N2UQ",
    "NF4",
    "NVFP4",
    "PACT",
    "QIL",
    "SAWB",
    "TQT",
    "APoT",
    "Binary",
    "DoReFa",
    "Dynamic",
    "DynamicPerToken",
    "FP8Static",
    "KMeans",
    "LSQPlus",
    "LookupTable",
    "LookupTableQuantizer",
    "Mode",
    "Oscillations",
    "PowersOfTwo",
    "Quantizer",
    "ScaledFloat",
    "Static",
    "Ternary",
]
