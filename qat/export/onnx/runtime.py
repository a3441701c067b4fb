"""Run ONNX files in ONNX Runtime: as a module, or against the clock."""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from qat.arguments import check_count, is_whole_number
from qat.export.file_network import FileNetwork, tensors_for, written_file
from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.saturation import EXACT, needs_exact_sums
from qat.export.stopwatch import Timing, time_in_turns
from qat.export.verification import DamagedFileError
from qat.messages import shown
from qat.reading.malformed import reason
from qat.torch_private import tree_map_only

APPENDED = re.compile(r"(_real)?(_nchwc)?(_token_\d+)?$")
"""What the exporter and the runtime append to the name of a layer."""


def session(
    model: str | Path | bytes,
    threads: int | None = None,
    spinning: bool = True,
    profile: Path | None = None,
    exact_sums: bool | None = None,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, with all optimisations on, and exact on every processor.

    An option that halves the speed (`saturation.EXACT`) is set only where sums could saturate.

    Args:
        model: path of a file, which is checked first; or the bytes of one that was.
        threads: number of threads; None lets the runtime choose.
        spinning: whether idle threads keep a core busy while they wait for work.
        profile: a folder for the times of all operators; None: they are not measured.
        exact_sums: whether to set the option; None: if it is needed.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    # The shapes of a file are checked before the runtime allocates memory for them.
    content = onnx.load_model_from_string(model) if isinstance(model, bytes) else read_onnx(model)
    if needs_exact_sums(content) if exact_sums is None else exact_sums:
        options.add_session_config_entry(*EXACT)
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile / "profile")
    if isinstance(model, bytes):
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with refusals(model):
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@contextmanager
def refusals(path: str | Path) -> Iterator[None]:
    """Inside the `with` block, an error of ONNX Runtime is one of the file at `path`.

    Raises:
        DamagedFileError: the runtime refused the file.
    """
    try:
        yield
    except Exception as error:  # the runtime's errors have no base class of their own
        if type(error).__module__.startswith("onnxruntime."):
            raise DamagedFileError(f"{path} is refused by ONNX Runtime: {reason(error)}.") from error
        raise


class OnnxRuntimeNetwork(FileNetwork):
    """An ONNX file as a module, run by ONNX Runtime. Arguments as those of `FileNetwork`."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self.session = session(path, threads)

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """All outputs of a batch."""
        with refusals(self.path):
            return [torch.from_numpy(array) for array in self.session.run(None, feeds(self.session, inputs))]


def stored_codes(path: str | Path, weights: Iterable[str]) -> dict[str, Tensor]:
    """The unpacked codes in the file of those `weights` ("conv1_weight", ...) whose layers compute in float."""
    tensors = {t.name.rpartition("_codes")[0]: t for t in read_onnx(path).graph.initializer if "_codes" in t.name}
    codes = {name: onnx.numpy_helper.to_array(tensors[name]) for name in weights if name in tensors}
    return {
        name: torch.from_numpy(_ranks(c) if "float8" in c.dtype.name else c.astype(np.int16))
        for name, c in codes.items()
    }


def _ranks(floats: NDArray[Any]) -> NDArray[np.int16]:
    """The ranks of 8-bit floating-point values, see `qat.floating_point`."""
    bits = floats.view(np.uint8).astype(np.int16)
    return np.where(bits < 128, bits, 128 - bits).astype(np.int16)


def operators(path: str | Path) -> dict[str, int]:
    """How often each operator occurs after ONNX Runtime's own optimisations, most frequent first.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: ONNX Runtime refuses it.
    """
    path = written_file(path)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        with refusals(path):
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def latency(
    paths: Mapping[str, str | Path],
    example_inputs: Tensor | tuple[Tensor, ...],
    batch_sizes: Sequence[int] = (1, 32),
    rounds: int = 50,
    threads: int | None = None,
) -> dict[str, dict[int, float]]:
    """Median milliseconds per batch in ONNX Runtime for each file and batch size.

    The files take turns within one process, so a busy machine slows all of them alike: compare the ratios. Idle threads do
    not spin, because those of one file would take the cores from the other.

    Args:
        paths: name -> file.
        example_inputs: inputs whose first sample is repeated to fill a batch.
        batch_sizes: which sizes to measure.
        rounds: how many batches of each size each file gets.
        threads: number of threads; None lets the runtime choose.

    Returns:
        name -> batch size -> milliseconds.

    Raises:
        ValueError: `paths` is no mapping with files in it, or a size, `rounds` or `threads` is no whole number, 1 or more.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(paths, Mapping) or not paths:
        raise ValueError(f"paths={shown(paths)} is not possible: write name -> file, {{'int8': 'model.onnx'}}.")
    if not isinstance(batch_sizes, Sequence) or not batch_sizes or not all(map(is_whole_number, batch_sizes)):
        raise ValueError(
            f"batch_sizes={shown(batch_sizes)} is not possible: write whole numbers, 1 or more, as (1, 32)."
        )
    check_count("rounds", rounds)
    if threads is not None:
        check_count("threads", threads)
    timings = time_files(paths, example_inputs, batch_sizes, rounds, threads)
    return {name: {size: timing.median for size, timing in of_file.items()} for name, of_file in timings.items()}


def time_files(
    paths: Mapping[str, str | Path],
    example_inputs: Tensor | tuple[Tensor, ...],
    batch_sizes: Sequence[int],
    rounds: int,
    threads: int | None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[int, Timing]]:
    """As `latency`, with more than the median. clock: see `time_in_turns`."""
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    sessions = {name: session(path, threads, spinning=False) for name, path in paths.items()}
    result: dict[str, dict[int, Timing]] = {name: {} for name in paths}
    for size in batch_sizes:
        batch = _repeated(examples, size)
        calls = {name: partial(s.run, None, feeds(s, batch)) for name, s in sessions.items()}
        for name, timing in time_in_turns(calls, rounds, clock=clock).items():
            result[name][size] = timing
    return result


def operator_shares(
    path: str | Path, example_inputs: tuple[Tensor, ...], batch: int, rounds: int = 10, threads: int | None = None
) -> dict[str, float]:
    """Where the time of a call goes: the share of each operator after the runtime's optimisations, the largest first.

    Args:
        path: the file.
        example_inputs: inputs whose first sample is repeated to fill a batch.
        batch: its size.
        rounds: how many batches are run; the fastest run of each operator counts.
        threads: number of threads; None lets the runtime choose.

    Returns:
        "conv1 (QLinearConv)" -> its share of the time that all operators take.
    """
    fastest: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        profiled = session(path, threads, spinning=False, profile=Path(folder))
        given = feeds(profiled, _repeated(example_inputs, batch))
        for _ in range(rounds):
            profiled.run(None, given)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            fastest[key] = min(fastest.get(key, math.inf), event["dur"])
    total = sum(fastest.values()) or 1.0
    shares: dict[str, float] = {}
    for (name, kind), duration in fastest.items():
        operator = f"{APPENDED.sub('', name)} ({kind})"
        shares[operator] = shares.get(operator, 0.0) + duration / total
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _repeated(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """The arguments of a network, nested or not, with the first sample `size` times; what has no samples stays."""

    def repeat(x: Tensor) -> Tensor:
        return x[:1].expand(size, *x.shape[1:]).contiguous() if x.ndim else x

    repeated: tuple[Any, ...] = tree_map_only(Tensor, repeat, inputs)
    return repeated


def feeds(session: Any, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """The tensors of the inputs, which may be nested, by name, as arrays; floats of any width become float32.

    Args:
        session: of ONNX Runtime, or anything else with `get_inputs`.
        inputs: the arguments of the network; what is not a tensor is a constant of the file.

    Raises:
        ValueError: there are more or fewer tensors than the file has inputs.
    """
    names = [i.name for i in session.get_inputs()]
    tensors = tensors_for(names, inputs)
    arrays = ((x.float() if x.is_floating_point() else x).detach().cpu().contiguous().numpy() for x in tensors)
    return dict(zip(names, arrays, strict=True))
