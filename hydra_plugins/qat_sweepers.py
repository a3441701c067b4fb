"""Where Hydra finds the sweepers of qat: it takes classes of this namespace alone. The code is in qat/experiment/sweep."""

from qat.experiment.sweep import grid_sweeper, optuna_sweeper


class GridSweeper(grid_sweeper.GridSweeper):
    """Every combination of the values on the command line."""


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """A search with Optuna."""
