"""The graph of what forward computes in training, for analysis only."""

from __future__ import annotations

import inspect
import random

import torch
import torch.nn.functional as F
from torch import fx, nn

from qat.capture.canonical.canonical_form import DROPOUTS, make_canonical
from qat.capture.errors import CaptureError
from qat.capture.traced.traces import Traces

_COUNTER = "num_batches_tracked"


def training_graph(model: nn.Module) -> fx.Graph:
    """The canonical graph of forward in training: its calls of layers and norms, auxiliary heads among them.

    A forward that draws random numbers, for example to skip blocks, is traced with the same ones in every call. Counters of
    BatchNorm are left out. The model is changed as by `capture`, so pass a copy.

    Raises:
        CaptureError: torch.fx cannot trace forward in training.
    """
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            found = Traces(model).in_training
    finally:
        random.setstate(state)
    if found is None:
        raise CaptureError(f"{type(model).__name__} cannot be traced in training")
    graph, _ = found
    for node in graph.nodes:
        if node.op == "call_function" and (node.target is F.batch_norm or node.target in DROPOUTS):
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            node.args, node.kwargs = (), {**bound.arguments, "training": False}  # so that they become modules
    make_canonical(model, graph, None, None)
    _drop_counters(graph)
    return graph


def _drop_counters(graph: fx.Graph) -> None:
    for node in [n for n in graph.nodes if n.op == "get_attr" and str(n.target).endswith(_COUNTER)]:
        if all(not user.users for user in node.users):
            for user in list(node.users):
                graph.erase_node(user)
            graph.erase_node(node)
