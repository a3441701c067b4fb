"""Tables from results written by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks import menu, network_tables, number_formats, pages, program_tables, reconstruction, reproduce, tables
from benchmarks.program_tables import NOT_MEASURED
from benchmarks.published import Published
from tests.quantizers.catalogue import OF_FORMATS

NOT_IN_THE_MENU = {"dynamic", "dynamic_per_token", "fp8_static"}  # 8 bits, and between float layers

MACHINE = {"accelerator": None, "cpu": "A CPU", "threads": 2, "versions": {"torch": "9.9"}, "commit": "0123456789abc"}
ABOUT = {"command": "python -m benchmarks.x", "environment": MACHINE}


def row(ratio: float, **more: float) -> dict[str, float]:
    return {
        "seconds": 0.5,
        "ratio": ratio,
        "ratio_lower_quartile": ratio - 0.1,
        "ratio_upper_quartile": ratio + 0.1,
        **more,
    }


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_without_files_everything_is_not_measured(tmp_path):
    for marker, text in tables.tables_of_programs(tmp_path).items():
        assert NOT_MEASURED in text, marker
        assert "commit" not in text


def test_step_time():
    step = {"float": row(1.0, memory_ratio=1.0), "w8a8": row(1.25, memory_ratio=1.125, graph_breaks=0)}
    same = {"network": "ResNet-20", "batch": 128, "mode": "compiled"}
    cases = [
        {**same, "precision": "float32", "steps": step},
        {**same, "precision": "bfloat16", "error": "RuntimeError: a | b"},
    ]
    text = program_tables.step_time_table({**ABOUT, "cases": cases})
    assert "| ResNet-20, batch 128 | float32 | compiled | w8a8 | 1.25 [1.15, 1.35] | 1.12 | 0 |" in lines(text)
    assert "| ResNet-20, batch 128 | bfloat16 | compiled |  | fails: RuntimeError: a \\| b |  |  |" in lines(text)
    assert sum(NOT_MEASURED in line for line in lines(text)) == 12 - 2
    assert text.endswith("`python -m benchmarks.x`; A CPU, 2 threads; torch 9.9; commit 0123456789.")


def test_operation():
    case = {
        "kind": "per tensor",
        "shape": [2, 3],
        "mode": "eager",
        "operations": {"a + b": row(1.0)},
        "errors": {"q": "no"},
    }
    text = program_tables.operation_table({**ABOUT, "cases": [case]})
    assert lines(text) == [
        "| per tensor | 2 × 3 | eager | a + b | 500.00 | 1.00 [0.90, 1.10] |",
        "| per tensor | 2 × 3 | eager | q |  | fails: no |",
    ]


def test_peers():
    found = {
        "brevitas": {
            "versions": {"brevitas": "1.2", "torch": "9.9"},
            "settings": "defaults",
            "parameters": 7,
            "eager": {"steps": {"float": row(1.0), "brevitas": row(2.0, memory_ratio=1.5)}},
            "compiled": {"error": "Unsupported: x"},
        },
        "nncf": {"settings": "defaults", "error": "no wheel"},
    }
    found_lines = lines(program_tables.peer_table({**ABOUT, "peers": found}))
    assert "| brevitas 1.2 | 2.00 [1.90, 2.10] | 1.50 | fails: Unsupported: x |  |  | 7 | defaults |" in found_lines
    assert "| nncf | fails: no wheel |  |  |  |  |  | defaults |" in found_lines
    assert sum(NOT_MEASURED in line for line in found_lines) == len(program_tables.NAMES) - 2


def test_candidates_latency_and_profile():
    assert lines(program_tables.candidate_table({**ABOUT, "candidates": {"batch": row(0.3)}}, "a step")) == [
        "| batch | 500.0 | 0.300 [0.200, 0.400] |"
    ]
    run = {
        "ratio": {"w8a8": {"1": 0.5, "32": 0.25}, "w2a2": {"1": 2.0}},
        "slowest": {"w8a8": {"conv1 (QLinearConv)": 0.6, "x": 0.1}, "w2a2": {}},
    }
    assert lines(program_tables.latency_table({**ABOUT, "latency": {"digits": run}})) == [
        "| `digits` | `w8a8` | conv1 (QLinearConv) 60%, x 10% | 0.50 | 0.25 |",
        "| `digits` | `w2a2` |  | 2.00 | – |",
    ]
    spent = {"operation": "conv", "calls": 19.0, "milliseconds": 8.0, "share": 0.5}
    steps = {"float": [{**spent, "milliseconds": 7.0}], "w8a8": [spent, {**spent, "operation": "clamp"}]}
    assert lines(program_tables.profile_table({**ABOUT, "steps": steps})) == [
        "| `conv` | 19 | 8.0 | 50.0 | 7.0 |",
        "| `clamp` | 19 | 8.0 | 50.0 |  |",
    ]


def test_oscillation():
    keys = ("oscillating", "oscillating_depthwise", "frozen", "frozen_depthwise", "top1", "top1_after_estimation")
    runs = [dict.fromkeys(keys, 0.25), dict.fromkeys(keys, 0.75)]
    about = {"policy": "w3a8", "data": "digits", "steps": 7, "batch": 32, "test_images": 1234, "float_top1": 0.5}
    text = program_tables.oscillation_table({**ABOUT, **about, "controls": {"nothing": runs, "freezing": runs}})
    assert lines(text)[1] == f"| freezing | 2 | {' | '.join(['50.00 ± 35.36'] * 6)} |"
    assert text.endswith("over the seeds. w3a8, digits: 7 steps of 32 images, 1,234 test images; float 50.00 %.")


def test_the_readme_has_a_place_for_every_table(tmp_path):
    readme = (tables.ROOT / "benchmarks/README.md").read_text()
    for marker in tables.tables_of_programs(tmp_path):
        assert readme.count(f"<!-- {marker} -->") == readme.count(f"<!-- end of {marker} -->") == 1


def test_check_finds_a_table_that_is_out_of_date(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- peers -->\nold\n<!-- end of peers -->\n")
    with pytest.raises(SystemExit, match=r"page.md is out of date: run python -m benchmarks.tables"):
        pages.fill(page, "peers", "new", check=True)
    pages.fill(page, "peers", "new", check=False)
    assert page.read_text() == "<!-- peers -->\nnew\n<!-- end of peers -->\n"
    with pytest.raises(SystemExit, match="no place for 'step time'"):
        pages.fill(page, "step time", "new", check=False)


def test_a_results_file_is_read(tmp_path):
    path = tmp_path / "x.json"
    assert program_tables.read_measurement(path) is None
    path.write_text(json.dumps({"peers": {}}))
    assert program_tables.read_measurement(path) == {"peers": {}}


def test_menu():
    cells = {f"w4a4, seed {seed}": {"top1": top1, "commit": "abc"} for seed, top1 in enumerate((0.80, 0.81, 0.82))}
    cells["w2a2, seed 0"] = {"top1": 0.5, "commit": "abc"}
    about = {**ABOUT, "data": "cifar10", "test": 10000, "float": 0.8792}
    found = program_tables.menu_table([{**about, "row": "lsq", "cells": cells}], ("w4a4", "w3a3", "w2a2"))
    assert lines(found) == ["| `lsq` | 81.00 ± 1.00 |  | 50.00 (1 seed) | abc |"]
    assert "float 87.92" in found


def test_the_menu_has_every_quantizer():
    known = {path.stem for path in (tables.ROOT / "configs" / "quantizer").glob("*.yaml")}
    measured_ones = {name.split(",")[0].split(" + ")[0] for name in menu.ROWS}
    assert known - NOT_IN_THE_MENU - set(OF_FORMATS) <= measured_ones


def test_published_results_beside_ours():
    cells = {f"w2a2, seed {seed}": {"top1": top1, "commit": "0123456789"} for seed, top1 in enumerate((0.84, 0.86))}
    ours = {**ABOUT, "row": "lsq", "steps": 4, "data": "some", "test": 100, "float": 0.9, "cells": cells}
    published = [
        Published("LSQ", "lsq", "a network", 71.0, {"w2a2": top1}, "Somebody 2020") for top1 in (68.0, 67.0, 60.0)
    ] + [Published("Other", "other", "a network", 71.0, {"w2a2": 60.0}, "Somebody 2020")]
    flagged, close, better, missing = lines(reproduce.comparison(published, {"lsq": ours}))
    assert "| 3.00 | 90.00 | 85.00 ± 1.41 (2) | 5.00 | **+2.00** |" in flagged
    assert "| 4.00 | 90.00 | 85.00 ± 1.41 (2) | 5.00 | +1.00 |" in close
    assert "| 11.00 | 90.00 | 85.00 ± 1.41 (2) | 5.00 | -6.00 |" in better
    assert f"| {NOT_MEASURED} |" in missing


def test_ranks_are_those_of_scipy():
    def row(name: str, top1: float):
        return {"row": name, "cells": {"w2a2, seed 0": {"top1": top1}}}

    published = [Published(n, n, "a network", 71.0, {"w2a2": t}, "x") for n, t in (("a", 3.0), ("b", 2.0), ("c", 1.0))]
    found = reproduce.order_of_methods(published, {n: row(n, t) for n, t in (("a", 0.3), ("b", 0.1), ("c", 0.2))})
    assert "| W2A2 | a, b, c | a, c, b | 0.50 (p = 0.67) |" in lines(found)  # 1 - 6 * (0 + 1 + 1) / (3 * 8)
    assert sum(NOT_MEASURED in line for line in lines(found)) == 2


def test_number_formats():
    about = {"format": "mxfp4", "float": 0.98, "bytes": 20, "float_bytes": 100}
    cases = [{**about, "ptq": 0.5 + 0.1 * i, "qat": 0.9, "read_back": 0.9} for i in range(3)]
    (row,) = lines(number_formats.table({**ABOUT, "cases": cases}))
    assert row == "| `mxfp4` | 98.00 ± 0.00 | 60.00 ± 10.00 | 90.00 ± 0.00 | 90.00 ± 0.00 | 0.20 |"
    assert number_formats.table(None) == "not measured"


def test_language_model():
    def seed(number, qat):
        rows = {"PTQ nearest": 2.0, "PTQ GPTQ": 1.5 + number / 10, "QAT, distilled": qat + number / 10}
        return {"seed": number, "float": 1.0 + number / 10, "formats": {"NVFP4": {"rows": rows, "bytes": 2000}}}

    text = {"python": "3.11", "characters": 10_000, "held_out": 1_000}
    about = {
        "settings": {"formats": ["NVFP4"], "pieces": 4},
        "network": {"parameters": 500},
        "text": text,
        "processor_seconds": 90,
    }

    def table(*differences):
        seeds = [seed(number, 1.5 + difference) for number, difference in enumerate(differences)]
        return program_tables.language_model_table({**ABOUT, **about, "seeds": seeds})

    better = table(-0.2, -0.3, -0.25)
    assert lines(better)[0] == "| float32 |  | 1.1000 ± 0.1000 |  | 2 kB |"
    assert lines(better)[2] == "| NVFP4 | PTQ GPTQ | 1.6000 ± 0.1000 | 0.5000 ± 0.0000 | 2 kB |"
    assert "NVFP4: QAT is **better** than PTQ (-0.2500 nats against PTQ GPTQ, paired standard error 0.0289)." in better
    assert "QAT is **WORSE** than PTQ (+0.2500" in table(0.2, 0.3, 0.25)
    assert "**no measurable difference** between QAT and PTQ (+0.0000" in table(-0.1, 0.0, 0.1)
    assert program_tables.language_model_table(None) == "not measured"


def test_reconstruction_compares_the_cells_of_two_files():
    def measurement(seconds: float, *policies: str) -> dict[str, object]:
        cells = [
            {"pass": "BRECQ", "policy": p, "seed": 0, "processor_seconds": seconds, "top1": seconds / 100}
            for p in policies
        ]
        return {**ABOUT, "cells": cells}

    text = reconstruction.table(measurement(60, "w4a4", "w2a2"), measurement(24, "w2a2", "w3a3"))
    assert lines(text) == ["| BRECQ | w2a2 | 0 | 60 | 24 | 2.5 | 60.00 | 24.00 |"]
    assert reconstruction.table(None, measurement(24, "w2a2")) == NOT_MEASURED


def test_transformers():
    row = {"loss": [2.0, 1.5], "weights_in_integers": 0.985, "multiply_adds_in_integers": 1.0, "agreement": 1.0,
           "agreement_with_prepared": 0.995, "codes": 1234, "mismatches": 1, "generates": False}  # fmt: skip
    found = {"A w8a8": row, "B w4": {"error": "TypeError: a | b"}}
    smooth = {"MinMax": {"sqnr_db": 15.95, "agreement_with_float": 0.7695}}
    measurement = {**ABOUT, "rows": found, "smooth_quant": smooth}
    first, second = lines(network_tables.transformer_table(measurement))
    assert first == "| A w8a8 | 2.000 → 1.500 | 98.5 % | 100 % | 1 of 1,234 | 100.0 % | 99.5 % | FAILS |"
    assert second.startswith(r"| B w4 | fails: TypeError: a \| b |")
    assert lines(network_tables.smooth_quant_table(measurement)) == ["| PTQ MinMax | 15.9 | 77.0 % |"]
    assert network_tables.transformer_table(None) == network_tables.smooth_quant_table(None) == NOT_MEASURED
    assert network_tables.smooth_quant_table({**ABOUT, "rows": {}}) == NOT_MEASURED


def test_efficientnet_lite():
    file = {"agreement": 0.98, "top1": 0.86, "operators": {"QLinearConv": 49}, "local_mismatches": 0, "codes": 1000,
            "file_bytes": 4_850_000}  # fmt: skip
    rows = {"w8a8": {"processor_minutes": 0.54, "file": file}}
    about = {"float_top1": 0.87, "test_images": 500, "train_images": 500, "calibration_images": 128}
    text = network_tables.efficientnet_table({**ABOUT, **about, "rows": rows})
    assert lines(text) == [
        "| float |  | 87.0 |  |  |  |  |  |",
        "| w8a8 | 98.0 % | 86.0 | -1.0 | 49 | 0 of 1,000 | 4.8 MB | 0.5 |",
    ]
    assert "128 of these calibrate" in text
    for name, agrees in (("w4a8", "0" * 9 + "1"), ("mixed", "1" * 10)):
        rows[name] = {"processor_minutes": 1.0, "file": {**file, "agrees": agrees, "stored_bytes": 4096}}
    text = network_tables.efficientnet_table({**ABOUT, **about, "rows": rows})
    assert "Mixed bits agree with float +90.0 points more often than uniform ones" in text
    assert "GPTQ" not in text
    assert network_tables.efficientnet_table(None) == NOT_MEASURED
