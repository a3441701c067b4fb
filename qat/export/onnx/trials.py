"""A graph run twice, with other sizes along the free axes: what depends on these sizes shows in the shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from torch import Tensor, fx

from qat.export.onnx.example_inputs import BATCHES, ExampleInputs, named_tensors
from qat.export.onnx.example_outputs import ExampleOutputs, example_outputs
from qat.export.onnx.runtime import session
from qat.export.outputs import named_outputs
from qat.reading.malformed import reason

LARGEST_ERROR = 0.1
"""Relative error of an output beyond which a file does not fit other sizes. Below it, codes at rounding edges may differ."""


class Trials:
    """Two runs of a graph.

    Args:
        model: the graph.
        inputs: its example inputs.

    Raises:
        ValueError: the model cannot run with other sizes of the free axes.
    """

    def __init__(self, model: fx.GraphModule, inputs: ExampleInputs) -> None:
        self.model = model
        (self.output,) = (n for n in model.graph.nodes if n.op == "output")
        self.inputs, self.one, self.other = run_twice(model, inputs)
        names = self.inputs.names.values()
        self.examples = [x for _, x in named_tensors(inputs.values.values(), inputs.names.values())]
        self.input_tensors, self._other_inputs = (dict(named_tensors(self.inputs.trial(i), names)) for i in (0, 1))
        self.output_tensors: dict[str, Tensor] = named_outputs(self.one[self.output])

    def with_data(self, nodes: Collection[fx.Node]) -> tuple[ExampleOutputs, ExampleOutputs]:
        """The outputs in both trials, in the second one with the data of these nodes."""
        return self.one, example_outputs(self.model, self.inputs.trial(1), nodes)

    def named_shape(self, name: str) -> list[int | str]:
        """The shape of an input or output, with the names of free axes."""
        if name in self.input_tensors:
            axes = self.inputs.axes.get(name, {})
            return [axes.get(i, n) for i, n in enumerate(self.input_tensors[name].shape)]
        one, other = self.output_tensors[name].shape, named_outputs(self.other[self.output])[name].shape
        known = {
            (self.input_tensors[n].shape[i], self._other_inputs[n].shape[i]): axis
            for n, axes in reversed(self.inputs.axes.items())
            for i, axis in reversed(axes.items())
        }
        sizes = enumerate(zip(one, other, strict=True))
        return [a if a == b else known.get((a, b), f"{name}_axis_{i}") for i, (a, b) in sizes]

    def check(self, file: onnx.ModelProto) -> None:
        """Run the file on the second trial, and on a third one, whose sizes had no part in it.

        Raises:
            ValueError: it cannot run with these sizes, or returns something else than the model.
        """
        for inputs in (self.inputs.trial(1), self.inputs.trial(2)):
            expected = example_outputs(self.model, inputs, {self.output})[self.output]
            check_outputs(file, dict(named_tensors(inputs, self.inputs.names.values())), named_outputs(expected))


def check_outputs(file: onnx.ModelProto, inputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Run a file in ONNX Runtime.

    Raises:
        ValueError: it cannot run on these inputs, or returns something else.
    """
    try:
        results = session(file.SerializeToString()).run(None, {name: x.numpy() for name, x in inputs.items()})
    except Exception as error:  # the runtime's exceptions have no common base class
        raise ValueError(
            f"ONNX Runtime cannot run the file with other sizes of its free axes ({reason(error)}): leave out of dynamic those "
            "that the network does not allow."
        ) from error
    for (name, ours), theirs in zip(expected.items(), results, strict=True):
        if ours.shape != theirs.shape or _error(ours.double().numpy(), theirs) > LARGEST_ERROR:
            raise ValueError(
                f"{name} of the file differs from the model's with other sizes of its free axes: leave out of dynamic those "
                "that the network does not allow."
            )


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative error, of finite elements."""
    finite = np.isfinite(ours)
    difference = (ours - theirs.astype(np.float64))[finite]
    return float(np.linalg.norm(difference) / (np.linalg.norm(ours[finite]) or 1.0))


def run_twice(model: fx.GraphModule, inputs: ExampleInputs) -> tuple[ExampleInputs, ExampleOutputs, ExampleOutputs]:
    """Trials of 2, 3 and 4 samples; or of as many times the example's, if the network accepts no others. Two are run.

    Returns:
        The inputs with these batches, and what every node returned in both trials.

    Raises:
        ValueError: the model cannot run on the example inputs, or with other sizes of the free axes.
    """
    samples = max(inputs.samples, 1)
    for batches in (BATCHES, tuple(samples * n for n in BATCHES)):
        sized = dataclasses.replace(inputs, batches=batches)
        try:
            one = example_outputs(model, sized.trial(0))
            return sized, one, example_outputs(model, sized.trial(1)) if any(inputs.axes.values()) else one
        except Exception as error:  # a network may raise anything
            refusal = _first_line(error)
    try:
        example_outputs(model, dataclasses.replace(inputs, axes={name: {} for name in inputs.axes}).trial(0))
    except Exception as error:
        said = _first_line(error)
        raise ValueError(
            f"the model cannot run on the example inputs ({said}): write them as forward is called."
        ) from error
    raise ValueError(
        f"the model cannot run with other sizes of its free axes, {inputs.axes} ({refusal}): write those that are free in "
        "dynamic, or dynamic={} if there are none."
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
