"""What a run writes and who watches it: `logger`, `callbacks`, `export`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from qat.experiment.schema.nodes import Node, Off, OneOf
from qat.experiment.schema.quantization import Oscillation, Stages
from qat.experiment.schema.training import Optimizer
from qat.experiment.schema.values import Count, CountOrZero, InFolder, OnnxFile, Says, Share, TargetName, Text

IN_FOLDER: Mapping[str, str] = {"save_dir": "write hydra.run.dir=FOLDER"}


class Logger(Node):
    """A logger of Lightning's (a file of configs/logger)."""

    TARGETS = (
        *("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger"),
        *("lightning.pytorch.loggers.csv_logs.", "lightning.pytorch.loggers.tensorboard."),
    )
    GIVEN: ClassVar = IN_FOLDER

    name: InFolder | None = None
    """the folder of its files, inside the run's folder"""
    version: InFolder | Literal[""] | CountOrZero | None = None
    """a folder inside that one"""
    sub_dir: InFolder | None = None
    """a folder inside that one, of TensorBoard"""
    prefix: str = ""
    """is put in front of the names of metrics"""
    flush_logs_every_n_steps: Count = 100
    """how many lines of the CSV file are buffered"""


class Wandb(Node):
    """Weights & Biases: takes the arguments of WandbLogger and of wandb.init."""

    TARGETS = ("qat.experiment.loggers.wandb_logger",)
    GIVEN: ClassVar = {**IN_FOLDER, "offline": "set the environment variable WANDB_MODE=offline"}

    project: Text = "qat"
    """the project of the run"""
    entity: Text | None = None
    """the user or team that owns the project"""
    name: Text | None = None
    """the name of the run; null: W&B invents one"""
    group: Text | None = None
    """groups runs that belong together"""
    job_type: Text | None = None
    """the kind of the run"""
    notes: Text | None = None
    """a remark on the run"""
    tags: list[Text] | None = None
    """words by which the run is found"""
    mode: Literal["online", "offline", "disabled", "shared"] | None = None
    """null: online if you are logged in, else offline"""
    log_model: bool | Literal["all"] = False
    """whether checkpoints are uploaded"""

    def parameters(self, found: Any) -> Mapping[str, inspect.Parameter]:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        known = {**inspect.signature(wandb.init).parameters, **inspect.signature(WandbLogger).parameters}
        return {name: p for name, p in known.items() if name not in (*self.GIVEN, "kwargs")}


class OtherLogger(Node):
    """A logger of your own; it must take save_dir."""

    GIVEN: ClassVar = IN_FOLDER


class QuantizationAwareTraining(Node):
    """The callback that inserts quantizers into the network and trains with them."""

    TARGETS = ("qat.callbacks.QuantizationAwareTraining",)
    GIVEN: ClassVar = {
        "policy": "write policy=NAME",
        "batches": "the data decide, leave it out",
        "calibration_images": "write calibration_images=N",
        "calibration_seed": "write seed=N",
        "network": "it is the network of the run, leave it out",
    }

    quantizer_lr_ratio: Annotated[float, Field(ge=0, le=1_000)] = 1.0
    """learning rate of learned scales, divided by that of weights"""
    quantizer_optimizer: Annotated[Any, OneOf((Optimizer,), null=True)] = None
    """optimizer of learned scales, {_target_: torch.optim.Adam, _partial_: true, lr: 1e-3}; null: that of the weights"""
    compile: bool = False
    """set by `compile`"""


class ProgressiveBits(Node):
    """The callback that trains with fewer bits from stage to stage."""

    TARGETS = ("qat.callbacks.ProgressiveBits",)

    stages: Stages | None = None
    """set by `progressive`"""


class FreezeCallback(Node):
    """The callback that freezes BatchNorm statistics and learned scales late in the run."""

    TARGETS = ("qat.callbacks.Freeze",)

    batch_norm: Share | None = None
    """set by `freeze.batch_norm`"""
    scales: Share | None = None
    """set by `freeze.scales`"""


Time = Annotated[float, Field(ge=0, le=100_000_000)]


class TimeDelta(Node):
    """A length of time, the sum of its parts."""

    TARGETS = ("datetime.timedelta",)

    days: Time | None = None
    """number of days"""
    hours: Time | None = None
    """number of hours"""
    minutes: Time | None = None
    """number of minutes"""
    seconds: Time | None = None
    """number of seconds"""


class ModelCheckpoint(Node):
    """The callback that keeps checkpoints."""

    TARGETS = ("lightning.pytorch.callbacks.ModelCheckpoint",)

    filename: InFolder | None = None
    """pattern of the file names"""
    monitor: Text | None = None
    """the metric by which the best checkpoint is chosen: val/top1, val/loss, step"""
    mode: Literal["min", "max"] = "min"
    """whether the lowest or the highest value is the best"""
    save_top_k: Annotated[Literal[-1] | Annotated[int, Field(ge=1, le=1_000_000)], Says("1 or more, or -1 for all")] = 1
    """how many of the best checkpoints are kept"""
    save_last: bool | Literal["link"] | None = None
    """whether the newest checkpoint is kept as last.ckpt"""
    every_n_train_steps: CountOrZero | None = None
    """steps between two checkpoints"""
    every_n_epochs: CountOrZero | None = None
    """epochs between two checkpoints"""
    train_time_interval: Annotated[Any, OneOf((TimeDelta,), null=True)] = None
    """time between two checkpoints"""


class Export(Node):
    """The files that a run writes and verifies (a file of configs/export)."""

    TARGETS = ("qat.callbacks.ExportONNX",)
    GIVEN: ClassVar = {"dataloaders": "the data decide, leave it out"}

    path: OnnxFile = "model.onnx"
    """name of the QDQ ONNX file, which is verified code by code in ONNX Runtime"""
    float_path: OnnxFile | None = None
    """name of the float network's ONNX file, for comparing size and latency; null: it is not written"""
    targets: Annotated[
        dict[TargetName, InFolder | None], Says("{portable: model_portable.onnx}, or {portable: null}")
    ] = Field(default_factory=dict)
    """further targets, each with the name of its file (null: model_NAME beside the ONNX file)"""


AnyLogger = Annotated[Any, OneOf((Logger, Wandb), OtherLogger)]
AnyCallback = Annotated[
    Any, OneOf((QuantizationAwareTraining, ProgressiveBits, FreezeCallback, ModelCheckpoint, Oscillation), null=True)
]
AnyExport = Annotated[Any, OneOf((Export, Off))]
