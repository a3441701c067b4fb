"""Does a `.pt2` file store and compute what the integer model does, site by site?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from qat.export.comparison import FileOutputs, compare, static_sites, with_graph
from qat.export.onnx.example_inputs import as_written
from qat.export.outputs import named_outputs
from qat.export.pt2e.codes import SHIFT
from qat.export.pt2e.program import RECORD, exported_program, load_program, record_of_file
from qat.export.verification import DamagedFileError, OtherModelError, StoredDifference, Verification
from qat.integer import IntegerModel
from qat.integer.fingerprint import fingerprint
from qat.reading.malformed import malformed
from qat.transform.batches import positional_arguments
from qat.version import version

LONGEST = 300
"""Characters of what a sentence quotes of a file."""


def verify_pt2e(
    path: str | Path,
    integer: nn.Module,
    batches: Iterable[Any],
    prepared: nn.Module | None = None,
    record: bool = False,
) -> Verification:
    """`qat.verify` for a program of torch.export. record: the file keeps no results; it is not changed.

    Raises:
        ValueError: this is not an integer model with a graph, there are no batches, the file is of another model or damaged.
    """
    model = with_graph(integer)
    program = load_program(path)
    kept = list(batches)
    if not kept:
        raise ValueError("nothing was verified: batches is empty.")
    sites = static_sites(model)
    run = _Sites(path, program, sites)
    constants, stored = _compare_stored(path, program, model, kept[0])
    result = Verification(constants_compared=constants, stored=stored)
    if not result.not_run:
        result = compare(model, kept, prepared, run, f"torch {torch.__version__}", sites)
        result.constants_compared, result.stored = constants, stored
    result.operators = dict(Counter(_operator(n) for n in program.graph.nodes if n.op == "call_function").most_common())
    result.sum_up()
    return result


class _Sites:
    """Runs a program and keeps the codes of its sites: of each, the last int8 tensor that its module makes."""

    def __init__(self, path: str | Path, program: ExportedProgram, sites: list[str]) -> None:
        self.module = program.module(check_guards=False)
        self.nodes: dict[str, fx.Node] = {}
        for node in self.module.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.dtype == torch.int8 and (name := _module_of(node)) in sites:
                self.nodes[name] = node
        if missing := sorted(set(sites) - set(self.nodes)):
            raise OtherModelError(
                f"{path} has no codes for the sites {', '.join(missing)}: it was written from another model."
            )

    def __call__(self, inputs: tuple[Any, ...], codes: Mapping[str, Tensor] | None = None) -> FileOutputs:
        interpreter = _Interpreter(self.module, {node: name for name, node in self.nodes.items()}, codes or {})
        with torch.no_grad():
            returned = interpreter.run(*inputs)
        return FileOutputs(list(named_outputs(returned).values()), interpreter.seen)


class _Interpreter(fx.Interpreter):
    """Runs a graph node by node. codes: what readers of a site get in place of what it computed."""

    def __init__(self, module: fx.GraphModule, sites: Mapping[fx.Node, str], codes: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self.sites, self.codes = sites, codes
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if n not in self.sites:
            return made
        name = self.sites[n]
        self.seen[name] = (made.to(torch.int16) + SHIFT).to(torch.uint8)
        return (self.codes[name].to(torch.int16) - SHIFT).to(torch.int8) if name in self.codes else made


def _module_of(node: fx.Node) -> str:
    """The path of the module whose forward has this node; "" for that of the network."""
    stack = node.meta.get("nn_module_stack") or {"": ("",)}
    return str(next(reversed(stack.values()))[0])


def _compare_stored(
    path: str | Path, found: ExportedProgram, integer: IntegerModel, batch: Any
) -> tuple[int, list[StoredDifference]]:
    """How many numbers the file should store, and what it stores differently from the integer model written anew."""
    record, arguments = record_of_file(path), positional_arguments(integer, batch)
    with malformed(path, "has a record that cannot be read", "write it again", DamagedFileError):
        axes = record.get("free_axes")
        dynamic = None if axes is None else {name: {int(i): n for i, n in of.items()} for name, of in axes.items()}
        example = as_written(arguments, record.get("example_shapes", []))
    expected, _ = exported_program(integer, example, dynamic)
    ours, theirs = ({**p.state_dict, **p.constants} for p in (expected, found))
    different = [
        d for name, x in ours.items() if isinstance(x, Tensor) and (d := _difference(name, x, theirs.get(name)))
    ]
    different += [StoredDifference(name, 1, "is not in the integer model") for name in theirs if name not in ours]
    described = _described(found)
    for what, lines in _described(expected).items():
        its_lines = described[what]
        wrong = next((b for a, b in zip(lines, its_lines, strict=False) if a != b), "its length")
        if lines != its_lines:
            text = " ".join(wrong.split())[:LONGEST]
            different.append(StoredDifference(what, 1, f"is not that of the integer model ({text})"))
    if record.get("versions", {}).get("qat") == version() and record.get("model_sha256") != fingerprint(integer):
        different.append(StoredDifference(RECORD, 1, "has another hash than the integer model", only_values=True))
    return sum(x.numel() for x in ours.values() if isinstance(x, Tensor)), different


def _difference(name: str, ours: Tensor, theirs: Tensor | None) -> StoredDifference | None:
    if theirs is None or theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return StoredDifference(name, ours.numel(), "is missing, or of another shape")
    only_values = ours.dtype != torch.int64
    ours, theirs = (x.detach().contiguous().reshape(-1, 1).view(torch.uint8) for x in (ours, theirs))
    elements = int((ours != theirs).any(1).sum())  # byte by byte: NaN equals NaN, and 0.0 is not -0.0
    return StoredDifference(name, elements, "differs from the integer model's", only_values) if elements else None


def _described(program: ExportedProgram) -> dict[str, list[str]]:
    """All that the file says beside its numbers: what is computed, and how it is called. Free sizes have names of any kind."""
    return {
        "signature": [str(program.graph_signature)],
        "calling convention": [  # the names of arguments and outputs
            f"{c.signature.out_spec}, {c.signature.forward_arg_names}, {c.signature.in_spec}"
            for c in program.module_call_graph
            if c.signature is not None
        ],
        "range of free sizes": [str(allowed) for allowed in program.range_constraints.values()],
        "graph": [f"{n.name} {n.op} {n.target} {n.args} {n.kwargs}" for n in program.graph.nodes],
    }


def _operator(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target)).split("::")[-1]
