"""`convert` and the integer modules that it builds: what the artefact must compute, in torch."""

from qat.integer.arithmetic import Encoding
from qat.integer.convert import convert, convert_with_loss
from qat.integer.integer_model import IntegerModel
from qat.integer.size import stored_bytes

__all__ = ["Encoding", "IntegerModel", "convert", "convert_with_loss", "stored_bytes"]
