"""Without calibration data: weights alone in few bits, or inputs of layers in 8 bits on the range that each of them has.

python examples/dynamic_and_weight_only.py
"""

from pathlib import Path

import torch
from digits import images, labels
from torch import nn

import qat
from qat.integer.size import stored_bytes

POLICIES = {
    "weights in 4 bits": {"preset": "w4", "weight": {"granularity": "per_group", "group_size": 16}},
    "dynamic, a range for each batch": "w8_dynamic",
    "dynamic, a range for each token": "w8_dynamic_per_token",
}


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return 100 * (model(pixels[1297:]).argmax(1) == labels[1297:]).float().mean().item()


torch.manual_seed(0)
pixels = images.flatten(1)  # linear layers are what these policies are for
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(pixels[:1297]), labels[:1297]).backward()
    optimizer.step()
model.eval()
folder = Path("outputs/examples")
folder.mkdir(parents=True, exist_ok=True)
print(f"{'float':32s} {accuracy(model):5.1f} %, {stored_bytes(model):7,} bytes")

for name, content in POLICIES.items():
    policy = qat.load_policy(content)
    prepared = qat.prepare(model, policy, pixels[:8])
    qat.calibrate(prepared, [pixels[:8]])  # gives weights their ranges; what the batch holds does not matter
    integer = qat.convert(prepared.eval())
    path = folder / f"{policy.name}.onnx"
    qat.export_onnx(integer, pixels[:8], path)
    check = qat.verify(path, integer, [pixels[1297:]], prepared, record=True)
    print(
        f"{name:32s} {accuracy(prepared):5.1f} %, {path.stat().st_size:7,} bytes, {check.code_mismatches} codes differ"
    )
    assert check.passed, check
