"""The networks that a fit compares, in the order of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from qat.export import OnnxRuntimeNetwork
from qat.integer import convert, stored_bytes
from qat.report.results.schema import RowKind, SizeKind
from qat.training.comparison import row_names
from qat.training.comparison.artefact import Artefact, TargetFile


@dataclass(frozen=True)
class Entry:
    """One network to be measured.

    Args:
        name: of its row.
        kind: of its row.
        network: what is measured.
        size_bytes: its size.
        size_kind: whether that is the size of a file, or of what would be stored.
        cpu_only: whether it runs on the CPU only.
        seconds: how long it took to make.
        latency_ms: batch size -> milliseconds in ONNX Runtime.
    """

    name: str
    kind: RowKind
    network: nn.Module
    size_bytes: int
    size_kind: SizeKind = "stored"
    cpu_only: bool = False
    seconds: float | None = None
    latency_ms: Mapping[int, float] = field(default_factory=dict)


def float_entries(network: nn.Module, artefact: Artefact | None) -> list[Entry]:
    """The float network, with the size and latency of its ONNX file if there is one."""
    name = row_names.FLOAT
    if artefact is None or artefact.float_path is None:
        return [Entry(name, "float", network, stored_bytes(network))]
    size = artefact.float_path.stat().st_size
    return [Entry(name, "float", network, size, "file", latency_ms=artefact.latency_ms[name])]


def ptq_entries(networks: Mapping[str, nn.Module], seconds: Mapping[str, float]) -> list[Entry]:
    """The networks of the PTQ ladder, by name."""
    return [
        Entry(name, "ptq", network, stored_bytes(network), seconds=seconds[name]) for name, network in networks.items()
    ]


def outside_entries(
    networks: Mapping[str, OnnxRuntimeNetwork], seconds: Mapping[str, float], artefact: Artefact | None
) -> list[Entry]:
    """The networks that other libraries made, by name."""
    latency = artefact.latency_ms if artefact is not None else {}
    return [
        Entry(name, "outside", network, network.size_bytes, "file", True, seconds[name], latency.get(name, {}))
        for name, network in networks.items()
    ]


def other_run_entries(files: Mapping[str, Path]) -> list[Entry]:
    """The files of other fits, by name."""
    networks = {name: OnnxRuntimeNetwork(path) for name, path in files.items()}
    return [Entry(name, "other_run", network, network.size_bytes, "file", True) for name, network in networks.items()]


def step0_entries(network: nn.Module, seconds: float) -> list[Entry]:
    """The prepared network before the first step. seconds: duration of the calibration."""
    return [Entry(row_names.STEP0, "step0", network, stored_bytes(network), seconds=seconds)]


def trained_entries(best: nn.Module, artefact: Artefact | None, seconds: float) -> list[Entry]:
    """The network that the fit ends with: fake-quantized, as an integer model, in ONNX Runtime, and for other targets.

    Args:
        best: the prepared network that the fit ends with.
        artefact: its file, if one was written.
        seconds: duration of calibration and fit.
    """
    size = stored_bytes(best)
    integer = artefact.integer if artefact is not None else convert(best)
    entries = [
        Entry(row_names.FAKE_QUANT, "qat_fake_quant", best, size, seconds=seconds),
        Entry(row_names.INTEGER, "qat_integer", integer, size, cpu_only=True, seconds=seconds),
    ]
    if artefact is None:
        return entries
    row = _file_entry(row_names.ONNX_RUNTIME, "qat_onnxruntime", artefact, seconds)
    entries.append(replace(row, latency_ms=artefact.latency_ms[row.name]))
    for file in artefact.targets:
        entries.append(_file_entry(row_names.target_row_name(file.target.name), "qat_target", file, seconds))
    return entries


def _file_entry(name: str, kind: RowKind, file: Artefact | TargetFile, seconds: float) -> Entry:
    return Entry(name, kind, file.network(), file.path.stat().st_size, "file", cpu_only=True, seconds=seconds)
