"""The target ExecuTorch: `.pte` programs, whose operations run in XNNPACK's integer kernels."""

from qat.export.executorch.program import export_executorch
from qat.export.executorch.runtime import ExecutorchNetwork
from qat.export.executorch.verify import verify_executorch

__all__ = ["ExecutorchNetwork", "export_executorch", "verify_executorch"]
