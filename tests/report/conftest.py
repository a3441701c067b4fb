"""One fixed, invented run: a small network at W4A8 where QAT is clearly better than PTQ."""

import pytest

from qat.report import (
    Data,
    Environment,
    LayerOscillations,
    OscillationResult,
    Results,
    Row,
    SiteInfo,
    SiteResult,
    Training,
    VerificationResult,
    verdict,
)
from qat.report.results.details import Confusion, TensorDetail, Trajectories, Trajectory


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output looks the same whatever the terminal or the CI service around the tests says about colours and widths."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rows() -> list[Row]:
    small, stored = 163_840, {"size_kind": "stored"}
    return [
        Row("float", "float", 0.9212, 0.9971, 0.031, size_bytes=1_093_456, size_kind="file",
            latency_ms_batch1=2.41, latency_ms_batch32=38.2),
        Row("PTQ min-max", "ptq", 0.8431, 0.9902, 0.052, size_bytes=small, **stored, seconds=1.5),
        Row("PTQ MSE", "ptq", 0.9017, 0.9951, 0.038, size_bytes=small, **stored, seconds=4.25),
        Row("QAT step 0", "step0", 0.9009, 0.9950, 0.039, size_bytes=small, **stored),
        Row("QAT fake-quant", "qat_fake_quant", 0.9176, 0.9966, 0.033, size_bytes=small, **stored, seconds=310.0),
        Row("QAT integer", "qat_integer", 0.9175, 0.9966, 0.033, size_bytes=small, **stored, seconds=310.0),
        Row("QAT in ONNX Runtime", "qat_onnxruntime", 0.9175, 0.9966, 0.033, size_bytes=301_112, size_kind="file",
            latency_ms_batch1=0.98, latency_ms_batch32=14.7, seconds=310.0,
            note="4-bit weights are stored as int8 in the file"),
    ]  # fmt: skip


@pytest.fixture
def results(rows: list[Row]) -> Results:
    return Results(
        recipe="cifar10_w4a8",
        command="python train.py recipe=cifar10_w4a8 seed=1",
        seed=1,
        config={"policy": {"weight_bits": 4, "activation_bits": 8}, "trainer": {"max_epochs": 6, "seconds": 600}},
        data=Data("cifar10", "CIFAR-10", 45_000, 5_000, 10_000, (3, 32, 32), 10, note="A fixed split."),
        rows=rows,
        verdict=verdict(rows, 10_000),
        verification=VerificationResult(
            codes_compared=1_234_567,
            code_mismatches=0,
            top1_agreement=1.0,
            max_step_difference=0,
            images=128,
            quantized_operators={"QLinearConv": 19, "Conv": 0, "QGemm": 1, "Gemm": 0},
            sites=[
                SiteResult("stem.conv", (128, 16, 32, 32), 1_048_576, 0, 0),
                SiteResult("head", (128, 10), 185_991, 0, 0),
            ],
        ),
        environment=Environment(
            python="3.11.9",
            platform="Linux-x86_64",
            cpu="Example CPU @ 2.0 GHz",
            threads=2,
            commit="0123456789abcdef0123456789abcdef01234567",
            dirty=True,
            accelerator="Example GPU",
            versions={"qat": "0.1.0", "torch": "2.11.0"},
        ),
        sites=[
            SiteInfo("input", "placeholder", None, "uint8 per_tensor affine"),
            SiteInfo(
                "stem.conv", "conv2d+relu", "int8 per_channel symmetric", "uint8 per_tensor", "first layer at 8 bits"
            ),
            SiteInfo("layer1.0.conv1", "conv2d+relu", "int4 per_channel symmetric", "uint8 per_tensor"),
        ],
        float_edges=["softmax: output, no integer kernel"],
        training=Training(
            epochs=6,
            steps=2_112,
            seconds=310.5,
            best_epoch=5,
            val_top1=[0.893, 0.904, 0.911, 0.9135, 0.9182, 0.9180],
            val_loss=[0.41, 0.36, 0.33, 0.31, None, 0.29],
            train_loss=[0.5, 0.4, 0.35, 0.3, 0.28, 0.27],
        ),
        oscillations=OscillationResult(
            threshold=0.005,
            momentum=0.01,
            layers=[LayerOscillations("layer1.0.conv1", 2_304, 23, 0), LayerOscillations("layer1.0.conv2", 144, 36, 9)],
        ),
        tensors=[
            TensorDetail(
                "layer1.0.conv1.weight", "weight", 18.5, 24.1, 0.001, -8, 7, [], -9.5, 8.5, [1, 4, 9, 30, 9, 4, 1, 0]
            ),
            TensorDetail(
                "layer1.0.conv1", "activation", 41.0, 44.5, 0.0, 0, 255, [], -1.5, 256.5, [90, 30, 9, 4, 1, 0, 0, 1]
            ),
            TensorDetail("dynamic", "activation", 40.0, None),
        ],
        trajectories=Trajectories(
            steps=[0, 100, 200],
            tensors=[Trajectory("layer1.0.conv1.weight", "weight", [0.02, 0.018, 0.017], [0.0, 0.001, None])],
        ),
        confusion=Confusion("QAT in ONNX Runtime", [[9, 1], [0, 10]]),
        timings={"float": 0.4, "ptq": 5.75, "qat": 310.5, "export": 2.1},
    )
