"""The version of this package."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "qat-lightning"
"""The name on package indexes; `qat` is another project there."""


def version() -> str:
    """The installed version, such as "0.1.0"; "unknown" if the package runs from a folder that was never installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
