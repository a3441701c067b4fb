"""Mixed precision: measure which layers suffer at 2 bits, give the worst one more, and train.

python examples/mixed_precision.py
"""

from pathlib import Path

import torch
from digits import accuracy, calibration, example, fit, float_network, test

import qat
from qat.integer.size import stored_bytes

model = float_network()
low = qat.load_policy("w2a2", first_last_bits=None)  # every layer, the first and the last one too
diagnosis = qat.inspect(model, low, calibration)
weights = [s for s in diagnosis.sensitivity if s.name and s.tensor == "weight"]
for line in weights:
    print(f"{line.name:10s} alone in 2 bits: {line.sqnr_db:5.1f} dB")
worst = min(weights, key=lambda line: line.sqnr_db).name

mixed = qat.load_policy(
    {
        "preset": "w2a2",
        "first_last_bits": None,
        "rules": {"sensitive": {"match": worst, "weight": {"bits": 8}, "activation": {"bits": 8}}},
    }
)
for name, policy in {"2 bits everywhere": low, f"8 bits for {worst}": mixed}.items():
    torch.manual_seed(0)
    prepared = qat.prepare(model, policy, example)
    qat.calibrate(prepared, calibration)
    calibrated = accuracy(prepared)
    fit(prepared, epochs=4, lr=0.01)  # it repairs so much that 500 images do not tell the two apart any more
    print(
        f"{name}: calibrated {calibrated:.1f} %, trained {accuracy(prepared):.1f} %, {stored_bytes(prepared):,} bytes"
    )

integer = qat.convert(prepared)
path = Path("outputs/examples/mixed_precision.onnx")
path.parent.mkdir(parents=True, exist_ok=True)
qat.export_onnx(integer, example, path)
check = qat.verify(path, integer, [test[0]], prepared, record=True)
print(f"{path}: {check.code_mismatches} of {check.codes_compared:,} codes differ")
assert check.passed, check
