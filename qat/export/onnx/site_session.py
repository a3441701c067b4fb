"""A file in ONNX Runtime with the codes of its sites: run whole, or started again behind every site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import onnx
import torch
from torch import Tensor

from qat.export.onnx.engine import ONNX_RUNTIME, Engine, Session
from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.proof import renamed_sites
from qat.export.onnx.runtime import feeds, refusals
from qat.export.verification import DamagedFileError
from qat.reading.malformed import malformed

SAME_VALUES = frozenset(
    """Cast Clip Concat Constant DepthToSpace DequantizeLinear Expand Flatten Gather GatherElements Identity LeakyRelu Max
    MaxPool Min Neg Pad QuantizeLinear Relu Reshape Shape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze
    """.split()  # noqa: SIM905 (one word a line would be thirty lines)
)
"""Operators that every runtime computes alike, to the last bit."""


class SiteSession:
    """A session that also returns the codes of the named sites. The file is not changed.

    Args:
        path: the file.
        sites: names of sites; those that the file does not have are left out of `self.sites`.
        zero_points: of sites, where the file has int8 codes, from which they were subtracted.
        engine: what runs it.
    """

    def __init__(
        self,
        path: str | Path,
        sites: Sequence[str],
        zero_points: Mapping[str, int] | None = None,
        engine: Engine = ONNX_RUNTIME,
    ) -> None:
        self.path, self.engine = path, engine
        self.model = read_onnx(path)
        with malformed(path, "has metadata that cannot be read", "write it again", DamagedFileError):
            self.model = _with_names_of_sites(self.model)
        self.outputs = [output.name for output in self.model.graph.output]
        tensors = {name for node in self.model.graph.node for name in node.output}
        self.sites = [name for name in sites if name in tensors]
        self.regions = _regions(self.model.graph, [*self.sites, *self.outputs], set(self.sites))
        self.mixes_samples = any(n.op_type == "DynamicQuantizeLinear" for n in self.model.graph.node)
        self.shifts = {n: (zero_points or {})[n] for n in _signed_tensors(self.model.graph) & set(self.sites)}
        """Sites with int8 codes -> what they are less than those of the integer model."""
        for name in self.sites:
            self.model.graph.output.append(onnx.helper.make_tensor_value_info(name, self._type(name), None))
        self._restarted: tuple[object, Session] | None = None

    @cached_property
    def session(self) -> Session:
        """The running file."""
        with refusals(self.path):
            return self.engine.open(self.model.SerializeToString())

    def __call__(self, *inputs: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """(outputs, {site: codes})."""
        return self._run(self.session, feeds(self.session, inputs))

    def restarted(self, codes: Mapping[str, Tensor], *inputs: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """(outputs, {site: codes}), each computed from `codes` of the sites in front of it, not from the runtime's own."""
        shapes = {name: tuple(codes[name].shape[1:]) for name in self.sites}
        if self._restarted is None or self._restarted[0] != shapes:
            types = {name: self._type(name) for name in self.sites}
            self._restarted = shapes, self.engine.open(_cut(self.model, shapes, types).SerializeToString())
        given = {_given(name): self._as_stored(name, codes[name]) for name in self.sites}
        return self._run(self._restarted[1], feeds(self.session, inputs) | given)

    def sources(self, name: str) -> set[str]:
        """The sites from which a site or output is computed, with no other site between."""
        return self.regions[name][0]

    def inherits(self, name: str, different: Mapping[str, Tensor], samples: int) -> Tensor:
        """Which elements are computed from codes that differ: whole samples, or all of them if samples depend on each other."""
        mask = different[name]
        sources = [different[n] for n in self.sources(name)]
        if self.mixes_samples or any(len(m) != samples for m in (mask, *sources) if m.ndim) or not mask.ndim:
            return torch.full_like(mask, any(bool(m.any()) for m in sources))
        inherits = torch.zeros(samples, dtype=torch.bool)
        for m in sources:
            inherits |= m.reshape(samples, -1).any(dim=1)
        return inherits.reshape(-1, *[1] * (mask.ndim - 1)).expand_as(mask)

    def rounds_floats(self, name: str) -> bool:
        """Whether a site is computed through operators whose floats depend on the order of additions."""
        return not self.regions[name][1] <= SAME_VALUES

    def _run(self, of_file: Session, inputs: Mapping[str, object]) -> tuple[list[Tensor], dict[str, Tensor]]:
        with refusals(self.path):
            values = [torch.from_numpy(v) for v in of_file.run([*self.outputs, *self.sites], dict(inputs))]
        count = len(self.outputs)
        codes = dict(zip(self.sites, values[count:], strict=True))
        unsigned = {n: (codes[n].short() + shift).to(torch.uint8) for n, shift in self.shifts.items()}
        return values[:count], codes | unsigned

    def _type(self, site: str) -> int:
        """The type of the site's codes in the file, by ONNX's number."""
        return int(onnx.TensorProto.INT8 if site in self.shifts else onnx.TensorProto.UINT8)

    def _as_stored(self, site: str, codes: Tensor) -> object:
        if site in self.shifts:
            codes = (codes.short() - self.shifts[site]).to(torch.int8)
        return codes.cpu().contiguous().numpy()


def _with_names_of_sites(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give sites their own names back, which inputs or outputs of the file have. In place."""
    renamed = renamed_sites(model)
    names = {site: f"{site} (of the network)" for site in renamed} | {name: site for site, name in renamed.items()}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    return model


def _regions(graph: onnx.GraphProto, names: Iterable[str], sites: set[str]) -> dict[str, tuple[set[str], set[str]]]:
    """Tensor -> (the sites in front of it, the operators between)."""
    producers = {name: node for node in graph.node for name in node.output}
    regions = {}
    for name in names:
        sources: set[str] = set()
        operators: set[str] = set()
        waiting, seen = [name], {name}
        while waiting:
            current = waiting.pop()
            if current in sites and current != name:
                sources.add(current)
            elif current in producers:
                operators.add(producers[current].op_type)
                further = set(producers[current].input) - seen
                seen |= further
                waiting += further
        regions[name] = sources, operators
    return regions


def _signed_tensors(graph: onnx.GraphProto) -> set[str]:
    """The results of QuantizeLinear with a zero-point of type int8."""
    signed = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    return {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear" and signed & set(n.input[2:])}


def _cut(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, int]) -> onnx.ModelProto:
    """A copy in which the readers of every site read a new input instead."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.input[:] = [_given(name) if name in shapes else name for name in node.input]
    for name, shape in shapes.items():
        dims: list[str | int] = [f"{name}/samples", *shape]
        copy.graph.input.append(onnx.helper.make_tensor_value_info(_given(name), types[name], dims))
    return copy


def _given(site: str) -> str:
    return f"{site}/given"
