"""The best checkpoints of an interrupted fit whose files were moved, and whose folder is used again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from qat.training.checkpoint.best_checkpoints import copy_best_checkpoints


def test_the_best_of_a_fit_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """A job of a sweep that goes on: its checkpoints are in another folder now, and it writes where they were."""
    folder, aside = tmp_path / "checkpoints", tmp_path / "earlier_1" / "checkpoints"
    aside.mkdir(parents=True)
    (aside / "best.ckpt").write_text("the best")
    callback = ModelCheckpoint(dirpath=folder, filename="best", monitor="val/top1", mode="max")
    best = str(folder / "best.ckpt")
    state: dict[str, Any] = {"dirpath": str(folder), "best_k_models": {best: 0.9}, "best_model_path": best}
    trainer: Any = SimpleNamespace(
        checkpoint_callbacks=[callback],
        ckpt_path=str(aside / "step_7.ckpt"),
        is_global_zero=True,
        strategy=SimpleNamespace(barrier=lambda _: None),
    )
    copy_best_checkpoints(trainer, {"callbacks": {callback.state_key: state}})
    assert (folder / "best.ckpt").read_text() == "the best"
    assert state["best_model_path"] == best
    assert state["best_model_score"] == 0.9
