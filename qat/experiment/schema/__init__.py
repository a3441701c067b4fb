"""One typed schema of a run's whole configuration; configuration.py is where to read."""

from qat.experiment.schema.configuration import Configuration
from qat.experiment.schema.validate import check_configuration

__all__ = ["Configuration", "check_configuration"]
