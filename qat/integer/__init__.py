"""Integer modules and `convert`: what the artefact must compute, in torch."""

from qat.integer.arithmetic import Codes
from qat.integer.convert import IntegerModel, convert
from qat.integer.size import stored_bytes

__all__ = ["Codes", "IntegerModel", "convert", "stored_bytes"]
