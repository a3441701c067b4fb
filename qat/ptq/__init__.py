"""Post-training quantization as lists of passes over one float network. A new pass needs a file here."""

from qat.ptq.ada_round import AdaRound
from qat.ptq.base import Pass, Stage, apply_passes, check_order
from qat.ptq.batchnorm_reestimation import BatchNormReestimation
from qat.ptq.bias_correction import BiasCorrection
from qat.ptq.brecq import BRECQ
from qat.ptq.calibrate import Calibrate
from qat.ptq.cross_layer_equalization import CrossLayerEqualization
from qat.ptq.fold_batchnorm import FoldBatchNorm
from qat.ptq.gptq import GPTQ
from qat.ptq.hessian_mse import HessianMSE
from qat.ptq.smooth_quant import SmoothQuant
from qat.ptq.state import NoGraphError, ProgressCallback, PTQState

__all__ = [
    "BRECQ",
    "GPTQ",
    "AdaRound",
    "BatchNormReestimation",
    "BiasCorrection",
    "Calibrate",
    "CrossLayerEqualization",
    "FoldBatchNorm",
    "HessianMSE",
    "NoGraphError",
    "PTQState",
    "Pass",
    "ProgressCallback",
    "SmoothQuant",
    "Stage",
    "apply_passes",
    "check_order",
]
