"""A sweep: policies times seeds, mean and spread, and the smallest one that loses little is exported and verified.

python examples/sweep.py

With recipes, `python train.py -m recipe=digits_w4a8 policy=w4a8,w2a2 seed=0,1,2` does the same over whole runs.
"""

import csv
import statistics
from pathlib import Path

import torch
from digits import accuracy, calibration, example, fit, float_network, test

import qat
from qat.integer.size import stored_bytes

POLICIES, SEEDS, ALLOWED = ("w4a4", "w3a3", "w2a2"), (0, 1, 2), 1.0  # percentage points below the float network

folder = Path("outputs/examples/sweep")
folder.mkdir(parents=True, exist_ok=True)
model = float_network()
found, networks = {}, {}
for policy in POLICIES:
    for seed in SEEDS:
        torch.manual_seed(seed)
        prepared = qat.prepare(model, policy, example)
        qat.calibrate(prepared, calibration)
        networks[policy] = fit(prepared, epochs=2, lr=0.01)
        found.setdefault(policy, []).append(accuracy(prepared))

with (folder / "sweep.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["policy", "mean", "sd", "bytes", *(f"seed {seed}" for seed in SEEDS)])
    for policy, values in found.items():
        mean, sd, size = statistics.mean(values), statistics.stdev(values), stored_bytes(networks[policy])
        table.writerow([policy, mean, sd, size, *values])
        print(
            f"{policy}: {mean:.1f} ± {sd:.1f} %, {size:,} bytes (float: {accuracy(model):.1f} %, {stored_bytes(model):,})"
        )

good = [policy for policy in POLICIES if statistics.mean(found[policy]) >= accuracy(model) - ALLOWED]
best = min(good or POLICIES[:1], key=lambda policy: stored_bytes(networks[policy]))
integer = qat.convert(networks[best])
path = folder / f"{best}.onnx"
qat.export_onnx(integer, example, path)
check = qat.verify(path, integer, [test[0]], networks[best], record=True)
print(f"{path}: {check.code_mismatches} of {check.codes_compared:,} codes differ")
assert check.passed, check
