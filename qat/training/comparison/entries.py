"""The networks that a fit compares, and the rows that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from qat.integer import convert, stored_bytes
from qat.report import Row
from qat.report.schema import Kind, SizeKind
from qat.training.callbacks.export_onnx import Artefact
from qat.training.callbacks.ptq_baselines import PTQBaselines
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison.evaluate import Evaluation


@dataclass(frozen=True)
class Candidate:
    """One network to be measured. cpu_only: it runs nowhere else."""

    name: str
    kind: Kind
    network: nn.Module
    size_bytes: int
    size_kind: SizeKind = "stored"
    cpu_only: bool = False
    seconds: float | None = None
    latency_ms: Mapping[int, float] = field(default_factory=dict)


def candidates(
    qat: QuantizationAwareTraining,
    ptq: PTQBaselines | None,
    step0: nn.Module | None,
    best: nn.Module,
    artefact: Artefact | None,
    seconds: float,
) -> list[Candidate]:
    """In the order of the table. best: the prepared network that the fit ends with. seconds: of calibration and fit."""
    found = []
    latency = artefact.latency_ms if artefact is not None else {}
    if (network := qat.float_network) is not None:
        file = artefact.float_path if artefact is not None else None
        size, kind = (stored_bytes(network), "stored") if file is None else (file.stat().st_size, "file")
        found.append(Candidate("float", "float", network, size, kind, latency_ms=latency.get("float", {})))  # type: ignore[arg-type]
    if ptq is not None:
        found += [
            Candidate(name, "ptq", network, stored_bytes(network), seconds=ptq.seconds[name])
            for name, network in ptq.networks.items()
        ]
        found += [
            Candidate(name, "outside", made, made.size_bytes, "file", True, ptq.seconds[name], latency.get(name, {}))
            for name, made in ptq.outside_networks.items()
        ]
    if step0 is not None:
        found.append(Candidate("QAT step 0", "step0", step0, stored_bytes(step0), seconds=qat.calibration_seconds))
    stored = stored_bytes(best)
    integer = artefact.integer if artefact is not None else convert(best)
    found.append(Candidate("QAT fake-quant", "qat_fake_quant", best, stored, seconds=seconds))
    found.append(Candidate("QAT integer", "qat_integer", integer, stored, cpu_only=True, seconds=seconds))
    if artefact is not None:
        found.append(
            Candidate(
                "QAT in ONNX Runtime",
                "qat_onnxruntime",
                artefact.network(),
                artefact.path.stat().st_size,
                "file",
                cpu_only=True,
                seconds=seconds,
                latency_ms=latency["quantized"],
            )
        )
    return found


def rows(
    measured: Sequence[tuple[Candidate, Evaluation]], metrics: Mapping[str, str | None], notes: Mapping[str, str]
) -> list[Row]:
    """The table. metrics: field of `Row` -> name under which test_step logs it; None: not logged."""
    table = []
    for candidate, found in measured:
        values = {field: None if name is None else found.metric(name) for field, name in metrics.items()}
        top1 = values.pop("top1")
        assert top1 is not None
        table.append(
            Row(
                name=candidate.name,
                kind=candidate.kind,
                top1=top1,
                **values,
                size_bytes=candidate.size_bytes,
                size_kind=candidate.size_kind,
                latency_ms_batch1=candidate.latency_ms.get(1),
                latency_ms_batch32=candidate.latency_ms.get(32),
                seconds=candidate.seconds,
                note=notes.get(candidate.name, ""),
            )
        )
    return table
