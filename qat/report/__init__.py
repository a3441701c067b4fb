"""The results of a run: a documented file, and the console output, Markdown and pictures made from it alone.

Imports no torch, and of qat only `qat.files` and `qat.version`. Pictures and `write_report` are in
`qat.report.pages.markdown`, which is not imported here because it needs matplotlib.
"""

from qat.report.judgement.verdicts import not_verified, verdict
from qat.report.results.environment import Environment
from qat.report.results.json_records import SchemaError
from qat.report.results.oscillations import LayerOscillations, OscillationResult
from qat.report.results.results_file import read_results, write_results
from qat.report.results.schema import (
    IDENTICAL_DB,
    SCHEMA_VERSION,
    Data,
    Results,
    Row,
    SiteInfo,
    SiteResult,
    Training,
    Verdict,
    VerificationResult,
    timing_free,
)
from qat.report.text.console import make_console, print_report, print_sites

__all__ = [
    "IDENTICAL_DB",
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
    "not_verified",
    "print_report",
    "print_sites",
    "read_results",
    "timing_free",
    "verdict",
    "write_results",
]
