"""A graph as a Python function of the module whose submodules and parameters it names."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import fx

from qat.capture.graphs.graph_record import NodeRecord, graph_of_record, record_graph

_number = itertools.count()


class CompiledGraph:
    """A graph and its function. Neither changes any more, so copies are the same object; it can be pickled.

    Args:
        graph: owned by this object from then on.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    @cached_property
    def code(self) -> str:
        """The source of `forward`."""
        return self.graph.python_code("self").src

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """The function: (module, *inputs) -> outputs."""
        python = self.graph.python_code("self")
        file = f"<graph {next(_number)}>"
        linecache.cache[file] = (len(python.src), None, python.src.splitlines(keepends=True), file)  # for tracebacks
        scope: dict[str, Any] = dict(python.globals)
        exec(compile(python.src, file, "exec"), scope)
        function: Callable[..., Any] = scope["forward"]
        return function

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledGraph:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (record_graph(self.graph),)


def _restored(records: list[NodeRecord]) -> CompiledGraph:
    return CompiledGraph(graph_of_record(records))
