"""What a run writes and who watches it: `logger`, `callbacks`, `export`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from qat.experiment.schema.nodes import Node, Off, OneOf
from qat.experiment.schema.quantization import Oscillation, Stages
from qat.experiment.schema.training import Optimizer
from qat.experiment.schema.values import Count, CountOrZero, OnnxFile, Says, Share, TargetName, Text

IN_FOLDER: Mapping[str, str] = {"save_dir": "write hydra.run.dir=FOLDER"}


class Logger(Node):
    """A logger of Lightning's (a file of configs/logger)."""

    TARGETS = (
        *("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger"),
        *("lightning.pytorch.loggers.csv_logs.", "lightning.pytorch.loggers.tensorboard."),
    )
    GIVEN: ClassVar = IN_FOLDER

    name: Annotated[str, Says("text")] | None = None
    """folder below that of the run"""
    version: str | CountOrZero | None = None
    """folder below that"""
    prefix: str = ""
    """of the names of metrics"""
    flush_logs_every_n_steps: Count = 100
    """of the CSV file"""


class Wandb(Node):
    """Weights & Biases. The arguments of WandbLogger and of wandb.init."""

    TARGETS = ("qat.experiment.loggers.wandb_logger",)
    GIVEN: ClassVar = {**IN_FOLDER, "offline": "set the environment variable WANDB_MODE=offline"}

    project: Text = "qat"
    """where the run appears"""
    entity: Text | None = None
    """user or team"""
    name: Text | None = None
    """of the run; null: wandb invents one"""
    group: Text | None = None
    """runs that belong together"""
    job_type: Text | None = None
    """kind of the run"""
    notes: Text | None = None
    """a remark"""
    tags: list[Text] | None = None
    """to find it again"""
    mode: Literal["online", "offline", "disabled", "shared"] | None = None
    """null: online if you are logged in"""
    log_model: bool | Literal["all"] = False
    """upload checkpoints"""

    def parameters(self, found: Any) -> Mapping[str, inspect.Parameter]:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        known = {**inspect.signature(wandb.init).parameters, **inspect.signature(WandbLogger).parameters}
        return {name: p for name, p in known.items() if name not in (*self.GIVEN, "kwargs")}


class OtherLogger(Node):
    """A logger of your own; it takes save_dir."""

    GIVEN: ClassVar = IN_FOLDER


class QuantizationAwareTraining(Node):
    """Puts quantizers into the network."""

    TARGETS = ("qat.callbacks.QuantizationAwareTraining",)
    GIVEN: ClassVar = {
        "policy": "write policy=NAME",
        "batches": "the data decide, leave it out",
        "calibration_images": "write calibration_images=N",
        "calibration_seed": "write seed=N",
        "network": "it is the network of the run, leave it out",
    }

    quantizer_lr_ratio: Annotated[float, Field(ge=0, le=1_000)] = 1.0
    """learning rate of learned scales over that of weights"""
    quantizer_optimizer: Annotated[Any, OneOf((Optimizer,), null=True)] = None
    """one for the scales, {_target_: torch.optim.Adam, _partial_: true, lr: 1e-3}; null: that of the weights"""
    compile: bool = False
    """`compile`"""


class ProgressiveBits(Node):
    """Fewer bits stage by stage."""

    TARGETS = ("qat.callbacks.ProgressiveBits",)

    stages: Stages | None = None
    """`progressive`"""


class FreezeCallback(Node):
    """Freezes statistics and scales late."""

    TARGETS = ("qat.callbacks.Freeze",)

    batch_norm: Share | None = None
    """`freeze.batch_norm`"""
    scales: Share | None = None
    """`freeze.scales`"""


Time = Annotated[float, Field(ge=0, le=100_000_000)]


class TimeDelta(Node):
    """A time."""

    TARGETS = ("datetime.timedelta",)

    days: Time | None = None
    """of 24 hours"""
    hours: Time | None = None
    """of 60 minutes"""
    minutes: Time | None = None
    """of 60 seconds"""
    seconds: Time | None = None
    """of the clock"""


class ModelCheckpoint(Node):
    """Keeps checkpoints."""

    TARGETS = ("lightning.pytorch.callbacks.ModelCheckpoint",)

    filename: Text | None = None
    """pattern of the names"""
    monitor: Text | None = None
    """metric that says which is best: val/top1, val/loss, step"""
    mode: Literal["min", "max"] = "min"
    """whether less or more is better"""
    save_top_k: Annotated[Literal[-1] | Annotated[int, Field(ge=1, le=1_000_000)], Says("1 or more, or -1 for all")] = 1
    """how many of the best are kept"""
    save_last: bool | Literal["link"] | None = None
    """keep the newest as last.ckpt"""
    every_n_train_steps: CountOrZero | None = None
    """steps between checkpoints"""
    every_n_epochs: CountOrZero | None = None
    """epochs between checkpoints"""
    train_time_interval: Annotated[Any, OneOf((TimeDelta,), null=True)] = None
    """time between checkpoints"""


class Export(Node):
    """The file (a file of configs/export)."""

    TARGETS = ("qat.callbacks.ExportONNX",)
    GIVEN: ClassVar = {"dataloaders": "the data decide, leave it out"}

    path: OnnxFile = "model.onnx"
    """QDQ ONNX, verified in ONNX Runtime code by code"""
    float_path: OnnxFile | None = None
    """the float network, for its size and latency; null: not written"""
    targets: Annotated[dict[TargetName, Text | None], Says("{portable: model_portable.onnx}, or {portable: null}")] = (
        Field(default_factory=dict)
    )
    """further targets, and the names of their files (null: model_NAME beside the file)"""


AnyLogger = Annotated[Any, OneOf((Logger, Wandb), OtherLogger)]
AnyCallback = Annotated[
    Any, OneOf((QuantizationAwareTraining, ProgressiveBits, FreezeCallback, ModelCheckpoint, Oscillation), null=True)
]
AnyExport = Annotated[Any, OneOf((Export, Off))]
