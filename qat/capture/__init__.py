"""From a module to one canonical graph, and back into the same module."""

from qat.capture.capture import Captured, can_be_captured, capture
from qat.capture.copying import copy_model
from qat.capture.errors import CaptureError, StatefulError
from qat.capture.exported.export import is_plain
from qat.capture.exported.following import stop_following
from qat.capture.graphs.arguments import argument_names, call_arguments, called_by_name, copies
from qat.capture.graphs.call_format import CallFormat
from qat.capture.graphs.in_place import make_out_of_place, works_in_place
from qat.capture.install import graph_inputs, implied_arguments, install, installed_graph, serves_call
from qat.capture.limits import needs_example_inputs
from qat.capture.training.training_graph import training_graph

__all__ = [
    "CallFormat",
    "CaptureError",
    "Captured",
    "StatefulError",
    "argument_names",
    "call_arguments",
    "called_by_name",
    "can_be_captured",
    "capture",
    "copies",
    "copy_model",
    "graph_inputs",
    "implied_arguments",
    "install",
    "installed_graph",
    "is_plain",
    "make_out_of_place",
    "needs_example_inputs",
    "serves_call",
    "stop_following",
    "training_graph",
    "works_in_place",
]
