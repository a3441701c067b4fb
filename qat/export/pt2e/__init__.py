"""PT2E: integer models in the operations that PyTorch's own exporters know, as a module and as a `.pt2` file."""

from qat.export.pt2e.build import to_pt2e
from qat.export.pt2e.program import Pt2eNetwork, export_pt2e
from qat.export.pt2e.verify import verify_pt2e

__all__ = ["Pt2eNetwork", "export_pt2e", "to_pt2e", "verify_pt2e"]
