"""Run ONNX files in ONNX Runtime: as a module, or against the clock."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.saturation import EXACT, needs_exact_sums
from qat.export.stopwatch import time_in_turns
from qat.export.verification import DamagedFileError
from qat.reading.malformed import reason
from qat.torch_private import tree_leaves


def session(
    model: str | Path | bytes, threads: int | None = None, spinning: bool = True
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, with all optimisations on, and exact on every processor.

    Where sums could saturate it sets an option (`saturation.EXACT`) that halves the speed; elsewhere it does not.

    Args:
        model: path of a file, which is checked first; or the bytes of one that was.
        threads: number of threads; None lets the runtime choose.
        spinning: whether idle threads keep a core busy while they wait for work.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = (
        onnx.load_model_from_string(model) if isinstance(model, bytes) else read_onnx(model)
    )  # shapes before memory
    if needs_exact_sums(content):
        options.add_session_config_entry(*EXACT)
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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


class OnnxRuntimeNetwork(nn.Module):
    """An ONNX file as a module: tensors in, and the file's output out, or a tuple of several.

    Args:
        path: the file.
        threads: number of threads; None lets the runtime choose.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} does not exist: write it with qat.export_onnx(integer, example_inputs, path)."
            )
        self.path, self.threads = str(path), threads
        self.session = session(path, threads)

    @property
    def size_bytes(self) -> int:
        """Size of the file on disk."""
        return Path(self.path).stat().st_size

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        results = tuple(torch.from_numpy(r) for r in self.session.run(None, feeds(self.session, inputs)))
        return results[0] if len(results) == 1 else results

    def __deepcopy__(self, memo: object) -> OnnxRuntimeNetwork:
        return OnnxRuntimeNetwork(self.path, self.threads)


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
    """How often each operator occurs after ONNX Runtime's own optimisations, most frequent first."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
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
    """
    examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    sessions = {name: session(path, threads, spinning=False) for name, path in paths.items()}
    result: dict[str, dict[int, float]] = {name: {} for name in paths}
    for size in batch_sizes:
        batch = tuple(x[:1].expand(size, *x.shape[1:]).contiguous() for x in examples)
        calls = {name: partial(s.run, None, feeds(s, batch)) for name, s in sessions.items()}
        for name, timing in time_in_turns(calls, rounds).items():
            result[name][size] = timing.median
    return result


def feeds(session: Any, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """The tensors of the inputs, which may be nested, by name, as arrays; floats of any width become float32.

    session: of ONNX Runtime, or anything else with `get_inputs`.
    """
    names = [i.name for i in session.get_inputs()]
    leaves = (x for x in tree_leaves(list(inputs)) if isinstance(x, Tensor))
    tensors = ((x.float() if x.is_floating_point() else x).detach().cpu() for x in leaves)
    return {n: x.contiguous().numpy() for n, x in zip(names, tensors, strict=True)}
