"""Post-training quantization: several lists of passes, the best one is exported and verified.

python examples/post_training.py
"""

from pathlib import Path

from digits import accuracy, calibration, example, float_network, test

import qat
from qat.ptq import AdaRound, BiasCorrection, Calibrate, CrossLayerEqualization, apply_passes

POLICY = "w2a8"
LADDER = {
    "min-max": [Calibrate("MinMax")],
    "MSE": [Calibrate("MSE")],
    "equalization, MSE, bias correction": [CrossLayerEqualization(), Calibrate("MSE"), BiasCorrection()],
    "AdaRound": [Calibrate("MSE"), AdaRound(iterations=200)],
}

model = float_network()
print(f"{'float':36s} {accuracy(model):5.1f} %")
networks = {name: apply_passes(passes, model, POLICY, calibration, seed=0) for name, passes in LADDER.items()}
for name, network in networks.items():
    print(f"{name:36s} {accuracy(network):5.1f} %")

# A real project chooses on validation images, and looks at the test images once.
best = max(networks, key=lambda name: accuracy(networks[name]))
integer = qat.convert(networks[best])
path = Path("outputs/examples/post_training.onnx")
path.parent.mkdir(parents=True, exist_ok=True)
qat.export_onnx(integer, example, path)
check = qat.verify(path, integer, [test[0]], networks[best], record=True)
print(
    f"{best}: {path}, {path.stat().st_size:,} bytes, {check.code_mismatches} of {check.codes_compared:,} codes differ"
)
assert check.passed, check
