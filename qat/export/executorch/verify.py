"""Does an ExecuTorch program decide what the integer model does, in the integer kernels of XNNPACK?"""

from qat.export.device import Device
from qat.export.executorch.program import lowered
from qat.export.executorch.runtime import ExecutorchNetwork

verify_executorch = Device("ExecuTorch", "executorch", ExecutorchNetwork, lowered).verify
"""Every layer with codes in and out has to be in a delegate of XNNPACK, between quantizations."""
