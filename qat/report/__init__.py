"""What a run found: a documented results file, and the console, Markdown and pictures made from it alone.

Ground floor: no torch, nothing else of qat. Pictures and ``write_report`` are in :mod:`qat.report.markdown`, which is
not imported here because it needs matplotlib.
"""

from qat.report.console import make_console, print_report, print_sites
from qat.report.environment import Environment
from qat.report.records import SchemaError
from qat.report.schema import (
    SCHEMA_VERSION,
    Data,
    LayerOscillations,
    OscillationResult,
    Results,
    Row,
    SiteInfo,
    SiteResult,
    Training,
    Verdict,
    VerificationResult,
    timing_free,
)
from qat.report.verdicts import verdict
from qat.report.writing import read_results, write_results

__all__ = [
    "SCHEMA_VERSION",
    "Data",
    "Environment",
    "LayerOscillations",
    "OscillationResult",
    "Results",
    "Row",
    "SchemaError",
    "SiteInfo",
    "SiteResult",
    "Training",
    "Verdict",
    "VerificationResult",
    "make_console",
    "print_report",
    "print_sites",
    "read_results",
    "timing_free",
    "verdict",
    "write_results",
]
