from pathlib import Path
from typing import Any

import pytest
import wandb

from qat.experiment.loggers import check_logger, make_logger, wandb_logger
from tests.experiment.configurations import changed, composed


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of wandb.init, which begins no run."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or None)
    return calls


@pytest.mark.parametrize(("logged_in", "offline"), [(False, True), (True, False)])
def test_wandb_is_offline_unless_somebody_is_logged_in(
    logged_in: bool, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[dict[str, Any]]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda prompt: logged_in)
    logger = wandb_logger(tmp_path, project="qat")
    assert logger._offline is offline
    assert logger._wandb_init.get("mode") == ("offline" if offline else None)
    assert len(begun) == (0 if offline else 1)


@pytest.mark.parametrize(("mode", "offline"), [("offline", True), ("online", False)])
@pytest.mark.usefixtures("begun")
def test_the_environment_decides(mode: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda prompt: pytest.fail("asked"))
    assert wandb_logger(tmp_path)._offline is offline


def test_a_server_that_does_not_answer_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(**options: Any) -> None:
        assert options["settings"].init_timeout == 30
        raise wandb.errors.CommError("timed out")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", silent)
    with pytest.warns(UserWarning, match=r"W&B does not answer \(timed out\): this run is logged offline"):
        logger = wandb_logger(tmp_path)
    assert logger._offline
    assert logger._wandb_init["mode"] == "offline"


def test_wandb_gets_recipe_seed_and_choices_as_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger.log_hyperparams", lambda *_: None)
    config = changed("seed=3")
    config.logger = {"_target_": "qat.experiment.loggers.wandb_logger", "project": "qat", "group": "mine"}
    given = make_logger(config, tmp_path, "digits_w2a2")._wandb_init
    assert (given["group"], given["name"]) == ("mine", "digits_w2a2, seed 3")
    assert given["tags"] == ["digits_w2a2", "w2a2", "digits", "ResNetCifar", "LSQ"]


def test_mlflow_is_named_where_it_is_missing(tmp_path: Path) -> None:
    from lightning.pytorch.loggers.mlflow import _MLFLOW_AVAILABLE

    if _MLFLOW_AVAILABLE:
        pytest.skip("MLflow is installed")
    config = changed()
    config.logger = {"_target_": "qat.experiment.loggers.mlflow_logger"}
    with pytest.raises(ValueError, match="logger=mlflow needs MLflow"):
        check_logger(config)
    with pytest.raises(ValueError, match=r"logger=mlflow needs MLflow: pip install 'qat-lightning\[mlflow\]'"):
        make_logger(config, tmp_path, "digits_w2a2")


def test_an_option_that_tensorboard_does_not_have_is_refused_before_training() -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'qat-lightning[tensorboard]'")
    check_logger(composed("logger=tensorboard", "+logger.max_queue=5", "logger.version=a"))
    with pytest.raises(ValueError, match=r"unknown key logger\.max_queu; did you mean logger\.max_queue\?"):
        check_logger(composed("logger=tensorboard", "+logger.max_queu=5"))
