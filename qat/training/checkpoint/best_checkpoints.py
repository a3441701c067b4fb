"""The best checkpoints of an interrupted run, for a run that resumes it in another folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def copy_best_checkpoints(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Copy the best checkpoints into the folder of this run, and change their record in `checkpoint` in place.

    To be called before callbacks read their states. When the folder changes, Lightning forgets the scores and keeps a path,
    so the first validation would count as the best. The files are looked for where they were written, and beside the
    checkpoint that is resumed, in case the run was moved.
    """
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if not state or not isinstance(callback, ModelCheckpoint):
            continue
        if callback.monitor is None or callback.save_top_k < 1 or callback.dirpath is None:
            continue
        resumed_folder = Path(trainer.ckpt_path or ".").parent
        moved = resumed_folder.resolve() != Path(callback.dirpath).resolve()
        if moved or str(state["dirpath"]) != str(callback.dirpath):
            _copy(callback, state, Path(callback.dirpath), resumed_folder, trainer.is_global_zero)
    trainer.strategy.barrier("best checkpoints")


def _copy(callback: ModelCheckpoint, state: dict[str, Any], folder: Path, resumed_folder: Path, write: bool) -> None:
    """Make `state`, in place, that of a callback that has written its best checkpoints into `folder`."""
    new_paths: dict[str, str] = {"": ""}
    for old in map(Path, state["best_k_models"]):
        source = next((path for path in (old, resumed_folder / old.name) if path.is_file()), None)
        if source is None:
            rank_zero_warn(f"the checkpoint {old} is gone: the best one is chosen among those that follow.")
            continue
        new_paths[str(old)] = str(folder / old.name)
        if write and source.resolve() != (folder / old.name).resolve():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / old.name)
    scores = {new_paths[old]: score for old, score in state["best_k_models"].items() if old in new_paths}
    state.update(dirpath=callback.dirpath, best_k_models=scores, last_model_path="")
    ranking = sorted(scores, key=lambda path: float(scores[path]), reverse=callback.mode == "max")
    state["best_model_path"] = ranking[0] if ranking else ""
    state["best_model_score"] = scores[ranking[0]] if ranking else None
    state["kth_best_model_path"] = ranking[-1] if len(ranking) == callback.save_top_k else ""
    state["kth_value"] = scores[ranking[-1]] if state["kth_best_model_path"] else callback.kth_value
