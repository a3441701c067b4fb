"""How scale and rounding learn: one paper a file. Adding one costs a file here and a YAML in `configs/quantizer/`."""

from qat.quantizers.apot import APoT
from qat.quantizers.base import Mode, Quantizer, Table
from qat.quantizers.binary import Binary
from qat.quantizers.dorefa import DoReFa
from qat.quantizers.dynamic import Dynamic
from qat.quantizers.k_means import KMeans
from qat.quantizers.lcq import LCQ
from qat.quantizers.lsq import LSQ
from qat.quantizers.lsq_plus import LSQPlus
from qat.quantizers.n2uq import N2UQ
from qat.quantizers.nf4 import NF4
from qat.quantizers.oscillations import Oscillations
from qat.quantizers.pact import PACT
from qat.quantizers.powers_of_two import PowersOfTwo
from qat.quantizers.qil import QIL
from qat.quantizers.sawb import SAWB
from qat.quantizers.static import Static
from qat.quantizers.ternary import Ternary
from qat.quantizers.tqt import TQT

__all__ = [
    "LCQ",
    "LSQ",
    "N2UQ",
    "NF4",
    "PACT",
    "QIL",
    "SAWB",
    "TQT",
    "APoT",
    "Binary",
    "DoReFa",
    "Dynamic",
    "KMeans",
    "LSQPlus",
    "Mode",
    "Oscillations",
    "PowersOfTwo",
    "Quantizer",
    "Static",
    "Table",
    "Ternary",
]
