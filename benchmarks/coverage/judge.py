"""What a right file is, and why a network has none."""

from __future__ import annotations

from typing import Any

LOWEST_DB = 20.0
"""A segment that computes something else than what was trained lies far below; rounding alone lies above."""
MARGIN_DB = 3.0
"""How much further from the prepared network a file may be than that network is from itself with other noise."""
ENOUGH = 0.9
"""Share of the multiply-adds of convolutions and linear layers below which a network is not called an integer one."""
STAGES = ("build", "prepare", "quantizers off", "calibrate", "inspect", "train", "convert", "integer", "export", "verify",
          "file", "other batch", "contents")  # fmt: skip
NOT_OF_THE_FILE = ("inspect", "train", "contents")
"""Stages whose failure leaves a file right."""
COMPARED = {
    "integer_db": "the integer model is {:.1f} dB from the prepared network",
    "file_db": "the file is {:.1f} dB from the prepared network",
    "other_batch_db": "the file is {:.1f} dB from the prepared network with another batch size",
}


LOWEST_OFF_DB = 100.0
"""Attention in products sums in another order than torch's fused kernel: equal to the last bits of float32, not in them."""


def faults(record: dict[str, Any]) -> list[str]:
    """Everything that keeps a network from a right file, in the order of the stages; empty if it has one."""
    failures = record.get("failures", {})
    found = [f"{stage}: {sentence}" for stage, sentence in failures.items() if stage not in NOT_OF_THE_FILE]
    if record.get("off_equal") is False and record["off_db"] < LOWEST_OFF_DB:
        found.append(f"with quantizers off it differs from the float network ({record['off_db']:.1f} dB)")
    if record.get("local_mismatches"):
        found.append(f"{record['local_mismatches']:,} of {record['codes']:,} codes differ")
    found += far_away(record)
    if not found and not record.get("exported"):
        found.append("no file")
    return found


def far_away(record: dict[str, Any]) -> list[str]:
    """What computes something else than the prepared network, as sentences.

    A segment of the integer model that starts from the same values must be within `LOWEST_DB`. Integer model and file as a
    whole must be, too, unless the prepared network amplifies noise so much that it is as far from itself:
    noise of its input, or codes that are moved as rounding moves them.
    """
    found = []
    if record.get("segment_db", LOWEST_DB) < LOWEST_DB:
        where, decibels = record["worst_segment"], record["segment_db"]
        found.append(
            f"the integer model's {where} is {decibels:.1f} dB from what the prepared network makes of the same values"
        )
    of_itself = (record[key] for key in ("sensitivity_db", "moved_codes_db") if record.get(key) is not None)
    lowest = min([LOWEST_DB, *(decibels - MARGIN_DB for decibels in of_itself)])
    return found + [text.format(record[key]) for key, text in COMPARED.items() if record.get(key, lowest) < lowest]


def right(record: dict[str, Any]) -> bool:
    """Whether a network ends in a right file: exported, no code differs locally, equal to float with its quantizers off, and
    integer model and file (in a session of our own, with two batch sizes) compute what the prepared network computes."""
    return not faults(record)


def trains(record: dict[str, Any]) -> bool:
    """Whether every parameter that has a gradient in float has a finite one."""
    return "gradients" in record and "train" not in record.get("failures", {})


def silently_wrong(record: dict[str, Any]) -> bool:
    """Whether verification says that all is well, and the file computes something else."""
    alarm = record.get("local_mismatches") or record.get("alarm") or "verify" in record.get("failures", {})
    return bool(record.get("exported")) and not alarm and bool(far_away(record))


def falsely_alarmed(record: dict[str, Any]) -> bool:
    """Whether verification raises its alarm for a right file."""
    return bool(record.get("alarm")) and right(record)


def stage_reached(record: dict[str, Any]) -> str:
    """The last stage that a network came to."""
    reached = [stage for stage in STAGES if stage in record.get("seconds", {}) or stage in record.get("failures", {})]
    return reached[-1] if reached else "start"
