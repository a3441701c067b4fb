"""`python -m qat.report path/to/results.json`: write report.md and its pictures next to a results file."""

import argparse
from pathlib import Path

from qat.report.pages.markdown import write_report
from qat.report.results.json_records import SchemaError
from qat.report.results.results_file import read_results
from qat.report.text.console import print_report


def main(arguments: list[str] | None = None) -> None:
    """Read the results file, print its report and write it beside the file.

    Raises:
        SystemExit: the file cannot be read; one sentence says why.
    """
    parser = argparse.ArgumentParser(prog="python -m qat.report", description=__doc__)
    parser.add_argument("results", type=Path, help="a results.json")
    path: Path = parser.parse_args(arguments).results
    try:
        results = read_results(path)
    except (OSError, SchemaError) as error:
        raise SystemExit(f"error: {error}") from None
    print_report(results)
    print(write_report(results, path.parent))


if __name__ == "__main__":
    main()
