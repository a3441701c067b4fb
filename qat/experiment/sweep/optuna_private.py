"""The private members of Optuna that a search uses, under public names; `tests/test_private_api.py` names each."""

from __future__ import annotations

from typing import Any


def trial_id(trial: Any) -> int:
    """The number under which Optuna's storage keeps a trial, frozen or not."""
    found: int = trial._trial_id
    return found
