"""What a graph of torch.fx lacks: then example inputs, and torch.export, are needed."""

from __future__ import annotations

import inspect
from contextlib import suppress

from torch import nn

from qat.capture.canonical.products import has_products
from qat.capture.errors import CaptureError
from qat.capture.graphs.arguments import Arguments
from qat.capture.install import installed_graph
from qat.capture.traced.hidden import hiding_functions, hiding_modules
from qat.capture.traced.traces import Traces
from qat.operations import is_label


def needs_example_inputs(model: nn.Module) -> bool:
    """Whether `capture` may give another graph without example inputs than with them.

    It may for layers that torch.fx does not see, optional arguments, products whose factors may have any number of axes, and
    what only training computes. Where this is False, `capture` without example inputs may still fail.
    """
    if installed_graph(model) is not None:
        return False
    parameters = inspect.signature(model.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(p.default is not p.empty or p.kind in several for p in parameters):
        return True
    traces = Traces(model)
    if _hidden(traces):
        return True
    with suppress(CaptureError):
        return has_products(model, traces.in_evaluation[0]) or not traces.are_the_same
    return False


def unfit_for_fx(traces: Traces, given: Arguments) -> str:
    """What a graph of torch.fx would lack, although forward may be traced; "" if nothing."""
    if hidden := _hidden(traces):
        return f"torch.fx sees no layers in {hidden[0]!r}"
    parameters = inspect.signature(traces.model.forward).parameters
    optional = [name for name in given if is_label(name) and name in parameters and parameters[name].default is None]
    return f"torch.fx would require {optional[0]!r}, which forward does not" if optional else ""


def _hidden(traces: Traces) -> list[str]:
    """Names of modules and functions with layers that torch.fx does not see."""
    if modules := hiding_modules(traces.model):
        return modules
    with suppress(CaptureError):
        return hiding_functions(traces.model, traces.in_evaluation[0])
    return []
