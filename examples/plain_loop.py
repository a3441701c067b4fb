"""Quantization-aware training in a loop of your own: prepare, calibrate, train as before, convert.

python examples/plain_loop.py
"""

from pathlib import Path

import torch
from digits import accuracy, calibration, example, fit, float_network, test

import qat

torch.manual_seed(0)
model = float_network()
prepared = qat.prepare(model, "w2a4", example)  # a copy with quantizers; `model` is not changed
qat.calibrate(prepared, calibration)  # first ranges
before = accuracy(prepared.eval())
fit(prepared, epochs=6, lr=0.01)  # a tenth of the float network's learning rate

integer = qat.convert(prepared)
path = Path("outputs/examples/plain_loop.onnx")
path.parent.mkdir(parents=True, exist_ok=True)
qat.export_onnx(integer, example, path)
check = qat.verify(path, integer, [test[0]], prepared, record=True)
print(f"float {accuracy(model):.1f} %, calibrated {before:.1f} %, trained {accuracy(prepared):.1f} %")
print(f"{path}: integers {accuracy(integer):.1f} %, {check.code_mismatches} of {check.codes_compared:,} codes differ")
assert check.passed, check
