"""`report.html`: one file that needs no network, made from a `Results` alone."""

import json
import math
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import StrictUndefined
from markupsafe import Markup

from qat.report.judgement.differences import standard_error
from qat.report.judgement.speed import speed_sentences
from qat.report.pictures import svg
from qat.report.results.details import TensorDetail
from qat.report.results.schema import SHIPPABLE, Results, Row, RowKind, VerificationResult
from qat.report.text import tables
from qat.report.text.allocation_tables import cost_table, harm_words, layer_table, other_run_sentence, point_table
from qat.report.text.pruning_tables import files_table, pruning_sentence, zeros_table
from qat.report.text_of_numbers import format_size

FOLDER = files("qat.report.pages") / "templates"
KINDS: dict[RowKind, tuple[str, str]] = {
    "float": ("float", "float"),
    "ptq": ("ptq", "post-training quantization"),
    "outside": ("outside", "by another library"),
    "other_run": ("other", "another run"),
    "step0": ("step0", "QAT before its first step"),
    "qat_fake_quant": ("qat", "QAT"),
    "qat_integer": ("qat", "QAT"),
    "qat_onnxruntime": ("qat", "QAT"),
    "qat_target": ("qat", "QAT"),
}
"""Row kind -> the class of its colour, and its name in the legend."""


def html(results: Results) -> str:
    """The report as one HTML page: tables that sort, pictures, and how to run the file. Light and dark, phone and print."""
    templates = Templates(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters["number"] = first_number
    page = templates.from_string(_read("report.html.j2"))
    content = {
        **_comparison(results),
        **_verification(results),
        **_allocation(results),
        **_tensors(results),
        **_training(results),
    }
    return page.render(
        r=results,
        style=Markup(_read("style.css")),
        script=Markup(_read("sort.js")),
        run_code=run_code(results),
        facts=list(tables.facts(results)),
        config=json.dumps(results.to_dict()["config"], indent=2, ensure_ascii=False) if results.config else "",
        sections=list(_sections(results)),
        pruning=(pruning_sentence(results.pruning), zeros_table(results.pruning)) if results.pruning else None,
        files=files_table(results.files),
        **content,
    )


def first_number(text: str) -> str:
    """The number that a cell begins with, in a form that a browser can compare; else the text.

    >>> first_number("90.17 ± 0.30"), first_number("1.09 MB"), first_number("163,840"), first_number("–")
    ('90.17', '1090000.0', '163840', '')
    """
    found = re.match(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*(kB|MB|GB)?", text)
    if found is None:
        return "" if text == tables.ABSENT else text
    number = found[1].replace(",", "").removeprefix("+")
    factor = {"kB": 1e3, "MB": 1e6, "GB": 1e9}.get(found[2] or "")
    return number if factor is None else str(round(float(number) * factor, 3))


def run_code(results: Results) -> str:
    """Code that runs the written file; "" if there is none."""
    if results.verification is None:
        return ""
    shape = ", ".join(map(str, results.data.image_shape))
    name = results.verification.file or "model.onnx"
    return "\n".join(
        [
            "import numpy as np",
            "import onnxruntime",
            "",
            "options = onnxruntime.SessionOptions()",
            'options.add_session_config_entry("session.x64quantprecision", "1")  # exact on processors without VNNI, too',
            f'session = onnxruntime.InferenceSession("{name}", options, providers=["CPUExecutionProvider"])',
            "first = session.get_inputs()[0]",
            'dtype = "int64" if first.type == "tensor(int64)" else "float32"',
            f"batch = np.zeros((1, {shape}), dtype)  # your data, prepared as in training".replace(", )", ",)"),
            "outputs = session.run(None, {first.name: batch})",
            "print([output.shape for output in outputs])",
        ]
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _sections(results: Results) -> Iterator[tuple[str, str]]:
    """(id, title) of every section that the page has."""
    yield from (("comparison", "Comparison"), ("verification", "Verification"), ("quantized", "What is quantized"))
    if results.pruning is not None:
        yield "pruning", "Zeros"
    if results.files:
        yield "files", "Files"
    if results.allocation is not None:
        yield "allocation", "Bits under a budget"
    if results.tensors:
        yield from (("sensitivity", "Sensitivity"), ("distributions", "Distributions"))
    optional = {
        "training": "Training",
        "trajectories": "Scales",
        "oscillations": "Oscillations",
        "confusion": "Confusion",
    }
    yield from ((name, title) for name, title in optional.items() if getattr(results, name))
    if results.verification is not None:
        yield "run", "Run the file"
    yield from (("environment", "Environment"), ("reproduce", "Reproduce"))


def _comparison(results: Results) -> dict[str, Any]:
    rows, metric = results.rows, results.metric
    notes = [other_run_sentence(other, metric) for other in results.other_runs]
    notes += [f"{row.name}: {row.note}" for row in rows if row.note]
    notes += speed_sentences(rows, results.environment, results.verification)
    drawn = [row for row in rows if math.isfinite(row.score)]
    y_label = f"test {metric.heading}"
    charts = []
    shown = [row for row in drawn if row.kind in SHIPPABLE]
    if shown:
        points = [_point(results, row, row.size_bytes) for row in shown]
        picture = svg.scatter(points, "size", y_label, lambda value: format_size(round(value)))
        charts.append(
            (
                "Filled: the file. Hollow: bytes of codes, scales and biases, moved where they would overlap. Whiskers: ±.",
                picture,
            )
        )
    timed = [(row, row.latency_ms_batch1) for row in drawn if row.latency_ms_batch1 is not None]
    if len(timed) > 1:
        shown += [row for row, _ in timed]
        points = [_point(results, row, latency) for row, latency in timed]
        charts.append(
            ("In ONNX Runtime, whiskers as ± in the table", svg.scatter(points, "ms per call, batch 1", y_label))
        )
    return {
        "metric": metric,
        "comparison": tables.comparison_table(rows, results.data.test, full=True, metric=metric),
        "error_words": tables.error_words(metric),
        "stored": tables.STORED_NOTE if any(row.size_kind == "stored" for row in rows) else "",
        "notes": notes,
        "charts": charts,
        "legend": list(dict.fromkeys(KINDS[row.kind] for row in rows if row in shown)),
    }


def _point(results: Results, row: Row, x: float) -> svg.Point:
    metric = results.metric
    error = standard_error(row, results.data.test, metric)
    title = f"{row.name}: {metric.text(row.score)}, {format_size(row.size_bytes)} ({row.size_kind})"
    scaled = None if error is None else metric.scaled(error)
    return svg.Point(
        x, metric.scaled(row.score), scaled, KINDS[row.kind][0], row.name, title, row.size_kind == "stored"
    )


def _verified(found: VerificationResult | None, results: Results) -> tuple[str, str] | None:
    """(class of the colour, sentence) of a verification."""
    if found is None:
        return None
    kind, sign = ("bad", "✗") if not found.exact else ("warn", "!") if found.weak_inputs else ("good", "✓")
    sentence = tables.verification_sentence(found, results.data.classes is not None)
    return kind, f"{sign} {sentence}, over {found.images:,} {results.data.samples}."


def _verification(results: Results) -> dict[str, Any]:
    found = results.verification
    return {
        "verified": _verified(found, results),
        "ptq_verified": _verified(results.ptq_verification, results),
        "targets_verified": [(v.file, _verified(v, results)) for v in results.target_verifications],
        "verification": tables.verification_table(found) if found else None,
        "sites": tables.site_table(results.sites),
        "oscillation": tables.oscillation_sentence(results.oscillations) if results.oscillations else "",
        "oscillations": tables.oscillation_table(results.oscillations) if results.oscillations else None,
    }


def _allocation(results: Results) -> dict[str, Any]:
    found = results.allocation
    if found is None:
        return {"allocation": None}
    points = []
    for point in found.points:
        harm = point.predicted if point.measured is None else point.measured
        kind = "step0" if point.chosen else "qat" if point.mixed else "ptq"
        name = "chosen" if point.chosen else point.name
        points.append(svg.Point(point.cost, math.log10(max(harm, 1e-12)), None, kind, name, f"{name}: {harm:.4g}"))
    cost = found.costs[0]
    return {
        "allocation": [("Costs", cost_table(found), 1), ("Layers", layer_table(found), 1)],
        "front": point_table(found) if points else None,
        "front_picture": svg.scatter(points, f"{cost.name}, {cost.unit}", "log10 of the harm") if points else "",
        "harm_words": harm_words(found),
    }


def _tensors(results: Results) -> dict[str, Any]:
    tensors = results.tensors
    by_kind = {kind: [t for t in tensors if t.kind == kind and t.counts] for kind in ("weight", "activation")}
    return {
        "sensitivity": _decibel_bars(tensors, "sensitivity_db", "dB at the output, this tensor alone quantized", "ptq"),
        "sqnr": _decibel_bars(tensors, "sqnr_db", "dB of the tensor", "qat"),
        "distributions": [
            ("Weights", [_histogram(t) for t in by_kind["weight"]]),
            ("Activations", [_histogram(t) for t in by_kind["activation"]]),
        ],
    }


def _decibel_bars(tensors: list[TensorDetail], field: str, label: str, kind: str) -> Markup:
    known = [(tensor, getattr(tensor, field)) for tensor in tensors if getattr(tensor, field) is not None]
    longest = max((value for _, value in known if value < 200), default=1.0)
    items = [
        (f"{t.name} ({t.kind[0]})", min(value, longest), "identical" if value >= 200 else f"{value:.1f}")
        for t, value in known
    ]
    return svg.bars(items, f"{label}   (w: weight, a: activation)", kind)


def _histogram(tensor: TensorDetail) -> tuple[str, Markup]:
    lowest, highest = tensor.lowest or 0, tensor.highest or 0
    codes = sorted({lowest, *tensor.levels, highest}) if tensor.levels else [lowest, highest]
    if not tensor.levels and 0 <= highest - lowest < 17:
        codes = list(range(lowest, highest + 1))
    clipped = "" if tensor.clipped is None else f", {100 * tensor.clipped:.2g} % clipped"
    picture = svg.histogram(
        tensor.counts, tensor.first or 0.0, tensor.last or 1.0, codes, "qat" if tensor.kind == "weight" else "ptq",
        f"Distribution of {tensor.name}",
    )  # fmt: skip
    return f"{tensor.name}{clipped}", picture


def _training(results: Results) -> dict[str, Any]:
    training, metric, moved = results.training, results.metric, results.trajectories
    curve = training.curve if training is not None else []
    values = [None if value is None else metric.scaled(value) for value in curve]
    shown = any(value is not None for value in values)
    epochs = range(1, len(values) + 1)
    return {
        "curve": svg.lines([("qat", values)], epochs, "epoch", f"validation {metric.heading}") if shown else "",
        "trajectories": [
            (
                f"{t.name} ({t.kind}): scale {_ends(t.scales)}, clipped {_ends(t.clipped, 100)} %",
                svg.spark(t.scales, "qat", f"Scale of {t.name}"),
                svg.spark(t.clipped, "ptq", f"Clip rate of {t.name}", zero=True),
            )
            for t in (moved.tensors if moved is not None else [])
        ],
    }


def _ends(values: list[float | None], factor: float = 1.0) -> str:
    known = [factor * value for value in values if value is not None]
    return f"{known[0]:.3g} → {known[-1]:.3g}" if known else tables.ABSENT
