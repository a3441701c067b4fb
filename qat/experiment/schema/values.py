"""The values that keys of the configuration can have. Errors and docs/configuration.md say of them what stands here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Keys of the configuration that belong together. A key that is not declared is an error; so is a value of another type:
    no string stands for a number, nor 1 for true. A string under a key explains it."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, populate_by_name=True
    )


@dataclass(frozen=True)
class Says:
    """What to write, in words, where the type alone does not say it."""

    text: str


Text = Annotated[str, Field(min_length=1), Says("text")]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Images = Annotated[int, Field(ge=1, le=100_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Workers = Annotated[int, Field(ge=0, le=256)]
Positive = Annotated[float, Field(gt=0, le=1_000_000)]
LearningRate = Annotated[float, Field(ge=1e-10, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]
Objective = Literal["accuracy", "size", "latency", "latency_32", "minutes"]


def _distinct(value: list[str]) -> list[str]:
    if not value or len(set(value)) < len(value):
        raise ValueError
    return value


Objectives = Annotated[list[Objective], AfterValidator(_distinct), Says("a list of some of them, each once")]
Bits = Annotated[int, Field(ge=2, le=8)]
TargetName = Literal["onnxruntime", "portable", "openvino", "tensorrt", "pt2e", "executorch", "litert"]
"""The names of `qat.export.TARGETS`, which would wait for torch."""


def _limit(value: int) -> int:
    if value == 0:
        raise ValueError
    return value


LimitOfSteps = Annotated[
    int, Field(ge=-1, le=1_000_000_000), AfterValidator(_limit), Says("a whole number, 1 or more, or -1 for no limit")
]
LimitOfEpochs = Annotated[
    int, Field(ge=-1, le=100_000), AfterValidator(_limit), Says("a whole number from 1 to 100,000, or -1 for no limit")
]
PartOfBatches = Annotated[
    Annotated[int, Field(ge=1, le=1_000_000_000)] | Annotated[float, Field(gt=0, le=1)],
    Says("a number of batches, 1 or more, or their fraction, as 0.1"),
]


def _onnx_file(value: str) -> str:
    path = Path(value)
    if path.suffix != ".onnx" or path.is_dir():
        raise ValueError
    if path.is_absolute() and not path.parent.is_dir():
        raise ValueError
    if not path.is_absolute() and path.name != value:
        raise ValueError
    return value


OnnxFile = Annotated[
    str,
    AfterValidator(_onnx_file),
    Says("the name of a file in the run's folder, as model.onnx, or a full path in a folder that exists"),
]


def _in_folder(value: str) -> str:
    path = Path(value)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError
    return value


InFolder = Annotated[str, AfterValidator(_in_folder), Says("the name of something in the run's folder")]


def _duration(value: str) -> str:
    parts = value.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts) or not any(map(int, parts)):
        raise ValueError
    return value


Duration = Annotated[str, AfterValidator(_duration), Says("a time as days:hours:minutes:seconds, '00:01:30:00'")]


def _preset(value: str) -> str:
    integers = r"w[2-8](a[2-8]|_dynamic|_dynamic_per_token)?"
    if not re.fullmatch(rf"(transformer_)?({integers}|(fp8|mxfp[468]|mxint8|nvfp4)(_weights)?|fp8_static)", value):
        raise ValueError
    return value


Preset = Annotated[
    str,
    AfterValidator(_preset),
    Says(
        "w<bits>a<bits> with 2 to 8 bits, as w4a8, or as w4 (weights alone), w8_dynamic, w8_dynamic_per_token, or "
        "fp8, fp8_static, mxfp8, mxfp6, mxfp4, mxint8, nvfp4, or as nvfp4_weights (weights alone); "
        "with transformer_ before it for transformers"
    ),
]
