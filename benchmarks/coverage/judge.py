"""What a right file is, and why a network has none."""

from __future__ import annotations

from typing import Any

LOWEST_DB = 20.0
"""A file that computes something else than what was trained lies far below; rounding alone lies above."""
ENOUGH = 0.9
"""Share of the multiply-adds of convolutions and linear layers below which a network is not called an integer one."""
STAGES = ("build", "prepare", "quantizers off", "calibrate", "inspect", "train", "convert", "integer", "export", "verify",
          "file", "other batch", "contents")  # fmt: skip
COMPARED = {
    "integer_db": "the integer model is {:.1f} dB from the prepared network",
    "file_db": "the file is {:.1f} dB from the prepared network",
    "other_batch_db": "the file is {:.1f} dB from the prepared network with another batch size",
}


def faults(record: dict[str, Any]) -> list[str]:
    """Everything that keeps a network from a right file that trains, in the order of the stages; empty if it has one."""
    found = [f"{stage}: {sentence}" for stage, sentence in record.get("failures", {}).items()]
    if record.get("off_equal") is False:
        found.append(f"with quantizers off it differs from the float network ({record['off_db']:.1f} dB)")
    if record.get("local_mismatches"):
        found.append(f"{record['local_mismatches']:,} of {record['codes']:,} codes differ")
    found += [text.format(record[key]) for key, text in COMPARED.items() if record.get(key, LOWEST_DB) < LOWEST_DB]
    if not found and not record.get("exported"):
        found.append("no file")
    return found


def right(record: dict[str, Any]) -> bool:
    """Whether a network ends in a right file: exported, no code differs locally, equal to float with its quantizers off, and
    integer model and file (in a session of our own, with two batch sizes) within `LOWEST_DB` of the prepared network."""
    return not faults(record)


def silently_wrong(record: dict[str, Any]) -> bool:
    """Whether verification says that all is well, and the file computes something else."""
    alarm = record.get("local_mismatches") or record.get("alarm") or "verify" in record.get("failures", {})
    far = [key for key in COMPARED if record.get(key, LOWEST_DB) < LOWEST_DB]
    return bool(record.get("exported")) and not alarm and bool(far)


def stage_reached(record: dict[str, Any]) -> str:
    """The last stage that a network came to."""
    reached = [stage for stage in STAGES if stage in record.get("seconds", {}) or stage in record.get("failures", {})]
    return reached[-1] if reached else "start"
