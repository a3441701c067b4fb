"""Memory and time of preparing and calibrating a language model of 300 million parameters, weights of 4 bits in groups of 32.

Memory is the resident size of the process at its highest (sampled every 5 ms) above what it was without the model, over the
bytes of the parameters: 1 is the float model alone. The model is prepared in place; a copy would add 1.

python -m benchmarks.large_model --threads 1
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.program_tables import NOT_MEASURED, Measurement, with_source

OBSERVERS = ("MinMax", "MSE")


def llama(layers: int, width: int, vocabulary: int) -> nn.Module:
    """A Llama with random weights: (N, T) tokens -> logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        intermediate_size=11 * width // 4,
        vocab_size=vocabulary,
    )
    return LlamaForCausalLM(config).eval()


def measure(layers: int, width: int, observer: str, threads: int) -> dict[str, Any]:
    """Peak memory and processor seconds, in a process of its own. A small model goes first, because the first call imports."""
    torch.set_num_threads(threads)
    policy = qat.load_policy(
        {"preset": "transformer_w4", "weight": {"granularity": "per_group", "group_size": 32, "observer": observer}}
    )
    example = {"input_ids": torch.randint(0, 100, (1, 64))}
    qat.calibrate(qat.prepare(llama(1, 128, 100), policy, example), [example])
    before = _resident_bytes()
    model = llama(layers, width, 32_000)
    peak = _Peak()
    start = time.process_time()
    prepared = qat.prepare(model, policy, example, inplace=True)
    middle = time.process_time()
    qat.calibrate(prepared, [example] * 2)
    end = time.process_time()
    parameters = sum(p.numel() for name, p in prepared.named_parameters() if "quantizer" not in name)
    return {
        "observer": observer,
        "parameters": parameters,
        "peak_over_parameters": (peak.stop() - before) / (4 * parameters),
        "prepare_seconds": middle - start,
        "calibrate_seconds": end - middle,
    }


class _Peak:
    """Watches the resident size of this process until `stop`."""

    def __init__(self) -> None:
        self._highest, self._stopped = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.005):
            self._highest = max(self._highest, _resident_bytes())

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self._highest


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def table(measurement: Measurement | None) -> str:
    """A row for each observer."""
    if measurement is None:
        return NOT_MEASURED
    rows = [
        [
            case["observer"],
            f"{case['parameters'] / 1e6:.0f} M",
            f"{case['peak_over_parameters']:.2f}×",
            f"{case['prepare_seconds']:.1f}",
            f"{case['calibrate_seconds']:.1f}",
        ]
        for case in measurement["cases"]
    ]
    header = ("observer", "parameters", "peak memory, of the parameters", "prepare, s", "calibrate, s")
    return with_source(markdown_table(header, rows, text_columns=1), measurement)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=RESULTS / "large_model/cpu.json")
    options = parse_options(parser)
    cases = []
    for observer in OBSERVERS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            cases.append(
                pool.submit(measure, options.layers, options.width, observer, torch.get_num_threads()).result()
            )
        print(cases[-1], flush=True)
        write_measurement(options.out, {"cases": cases})


if __name__ == "__main__":
    main()
