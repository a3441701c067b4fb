from pathlib import Path

import pytest
import wandb

from qat.experiment.loggers import wandb_logger


@pytest.mark.parametrize(("logged_in", "offline"), [(False, True), (True, False)])
def test_wandb_is_offline_unless_somebody_is_logged_in(
    logged_in: bool, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda prompt: logged_in)
    logger = wandb_logger(tmp_path, project="qat")
    assert logger._offline is offline
    assert logger._wandb_init.get("mode") == ("offline" if offline else None)


@pytest.mark.parametrize(("mode", "offline"), [("offline", True), ("online", False)])
def test_the_environment_decides(mode: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda prompt: pytest.fail("asked"))
    assert wandb_logger(tmp_path)._offline is offline
