"""The best checkpoints of an interrupted run, for one that goes on in another folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def bring_best_checkpoints(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Copy them, and change the record of them in `checkpoint`, in place: before callbacks read their states.

    Lightning forgets scores and keeps a path when the folder is another: then the first validation would be the best one.
    Files are looked for where they were written, and beside the checkpoint that is resumed, if the run was moved.
    """
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if (
            not isinstance(callback, ModelCheckpoint)
            or not state
            or callback.monitor is None
            or callback.save_top_k < 1
        ):
            continue
        if callback.dirpath is not None and str(state["dirpath"]) != str(callback.dirpath):
            _bring(
                callback, state, Path(callback.dirpath), Path(trainer.ckpt_path or ".").parent, trainer.is_global_zero
            )
    trainer.strategy.barrier("best checkpoints")


def _bring(callback: ModelCheckpoint, state: dict[str, Any], to: Path, beside: Path, write: bool) -> None:
    moved: dict[str, str] = {"": ""}
    for old in map(Path, state["best_k_models"]):
        source = next((path for path in (old, beside / old.name) if path.is_file()), None)
        if source is None:
            rank_zero_warn(f"the checkpoint {old} is gone: the best one is chosen among those that follow.")
            continue
        moved[str(old)] = str(to / old.name)
        if write and source.resolve() != (to / old.name).resolve():
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / old.name)
    scores = {moved[old]: score for old, score in state["best_k_models"].items() if old in moved}
    state.update(dirpath=callback.dirpath, best_k_models=scores, last_model_path="")
    order = sorted(scores, key=lambda path: float(scores[path]), reverse=callback.mode == "max")
    state["best_model_path"] = order[0] if order else ""
    state["best_model_score"] = scores[order[0]] if order else None
    state["kth_best_model_path"] = order[-1] if len(order) == callback.save_top_k else ""
    state["kth_value"] = scores[order[-1]] if state["kth_best_model_path"] else callback.kth_value
