"""Tables of the programs that measure whole networks: transformers from their configuration, and EfficientNet-Lite0."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.markdown_table import markdown_table
from benchmarks.program_tables import NOT_MEASURED, Measurement, with_source
from qat.report.judgement.paired import mcnemar


def transformer_table(measurement: Measurement | None) -> str:
    """A row for every network and policy."""
    if measurement is None:
        return NOT_MEASURED
    rows = []
    for name, row in measurement["rows"].items():
        if "error" in row:
            rows.append([name, f"fails: {row['error']}".replace("|", "\\|"), *[""] * 6])
            continue
        before, after = row["loss"]
        rows.append(
            [
                name,
                f"{before:.3f} → {after:.3f}",
                f"{100 * row['weights_in_integers']:.1f} %",
                f"{100 * row['multiply_adds_in_integers']:.0f} %",
                f"{row['mismatches']:,} of {row['codes']:,}",
                f"{100 * row['agreement']:.1f} %",
                f"{100 * row['agreement_with_prepared']:.1f} %",
                {True: "works", False: "FAILS", None: ""}[row.get("generates")],
            ]
        )
    header = (
        "network, policy",
        "loss",
        "weights in integers",
        "multiply-adds",
        "codes that differ",
        "file predicts as the integer model",
        "integer model as the prepared network",
        "`generate`",
    )
    return with_source(markdown_table(header, rows, text_columns=2), measurement)


def smooth_quant_table(measurement: Measurement | None) -> str:
    """PTQ with SmoothQuant and without."""
    if measurement is None or "smooth_quant" not in measurement:
        return NOT_MEASURED
    rows = [
        [f"PTQ {name}", f"{row['sqnr_db']:.1f}", f"{100 * row['agreement_with_float']:.1f} %"]
        for name, row in measurement["smooth_quant"].items()
    ]
    header = ("", "SQNR of the logits, dB", "next tokens as float")
    return with_source(markdown_table(header, rows, text_columns=1), measurement)


def efficientnet_table(measurement: Measurement | None) -> str:
    """A row for every policy and method, behind that of the float network."""
    if measurement is None:
        return NOT_MEASURED
    reference = measurement["float_top1"]
    rows = [["float", "", f"{100 * reference:.1f}", "", "", "", "", ""]]
    for name, row in measurement["rows"].items():
        file = row["file"]
        rows.append(
            [
                name,
                f"{100 * file['agreement']:.1f} %",
                f"{100 * file['top1']:.1f}",
                f"{100 * (file['top1'] - reference):+.1f}",
                f"{file['operators'].get('QLinearConv', 0)}",
                f"{file['local_mismatches']:,} of {file['codes']:,}",
                f"{file['file_bytes'] / 1e6:.1f} MB",
                f"{row['processor_minutes']:.1f}",
            ]
        )
    header = (
        "policy, method",
        "predictions as float",
        "top-1",
        "of float",
        "integer convolutions",
        "codes that differ locally",
        "file",
        "processor minutes",
    )
    about = (
        f"{measurement['test_images']} images test, {measurement['train_images']} others train, "
        f"{measurement['calibration_images']} of these calibrate."
    )
    text = f"{with_source(markdown_table(header, rows, text_columns=1), measurement)} {about}"
    return "\n\n".join([text, *_mixed_sentences(measurement["rows"])])


def _mixed_sentences(rows: dict[str, Any]) -> list[str]:
    """Mixed against uniform bits of one size, on the same images: a sentence for each method that has both."""
    sentences = []
    for method in ("", " GPTQ"):
        mixed, uniform = (rows.get(name + method, {}).get("file", {}) for name in ("mixed", "w4a8"))
        if "agrees" in mixed and "agrees" in uniform:
            found = mcnemar(*(np.array([m == "1" for m in file["agrees"]]) for file in (mixed, uniform)))
            sentences.append(
                f"Mixed bits{method and ' with' + method} agree with float {100 * found.difference:+.1f} points more often "
                f"than uniform ones (95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}, exact McNemar test); "
                f"stored: {mixed['stored_bytes']:,} B against {uniform['stored_bytes']:,} B."
            )
    return sentences
