"""Reads what W&B wrote offline: `run-ID.wandb`, records of protobuf in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER, MAGIC = 32_768, 7, b":W&B"
FULL, LAST = 1, 4


@dataclass
class WandbRun:
    """What a run told W&B. history: name -> its values, as they were logged; files: artifact -> the names in it."""

    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[Any]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def table(self, name: str) -> list[dict[str, Any]]:
        """A table that was logged, row by row."""
        (path,) = self.history[f"{name}/path"]
        content = json.loads((self.folder / "files" / path).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def read_wandb(folder: Path) -> WandbRun:
    """The only offline run below a folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    run = WandbRun(folder=path.parent)
    for content in _contents(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.group, run.tags = record.run.display_name, record.run.run_group, list(record.run.tags)
        elif kind == "config":
            run.config |= {_name(item): json.loads(item.value_json) for item in record.config.update}
        elif kind == "summary":
            run.summary |= {_name(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "history":
            for item in record.history.item:
                run.history.setdefault(_name(item), []).append(json.loads(item.value_json))
        elif kind == "artifact":
            run.files[record.artifact.type] = [entry.path for entry in record.artifact.manifest.contents]
            if record.artifact.type == "model":
                run.about = json.loads(record.artifact.metadata)
    return run


def _name(item: Any) -> str:
    return str(item.key or "/".join(item.nested_key))


def _contents(data: bytes) -> Iterator[bytes]:
    assert data.startswith(MAGIC)
    at, whole = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block that is too small for a header
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""
