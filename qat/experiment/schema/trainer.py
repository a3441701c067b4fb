"""The schema of `trainer`: arguments of Lightning's Trainer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from qat.experiment.schema.nodes import Node, OneOf, wrong
from qat.experiment.schema.values import (
    Count,
    CountOrZero,
    Duration,
    Epochs,
    LimitOfEpochs,
    LimitOfSteps,
    PartOfBatches,
    Positive,
    Says,
    Text,
)

QUICK = Says("false; for a quick run trainer.max_steps=1 float.max_steps=1 data.limit_train=1000")
Precision = (
    Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"]
    | Literal["transformer-engine", "transformer-engine-float16", "32", "16", "bf16", "64", 32, 16, 64]
)


class Trainer(Node):
    """Arguments of Lightning's Trainer. Those that a file of configs/trainer does not have are added with a plus:
    `+trainer.gradient_clip_val=1.0`."""

    TARGETS = ("lightning.Trainer", "lightning.pytorch.Trainer")
    GIVEN: ClassVar = {
        "callbacks": "write '+callbacks.NAME={_target_: ...}'",
        "logger": "write logger=csv, tensorboard or wandb",
        "default_root_dir": "write hydra.run.dir=FOLDER",
    }

    max_epochs: LimitOfEpochs | None = None
    """epochs of QAT at most; the run ends at whichever limit comes first"""
    max_steps: LimitOfSteps = -1
    """optimizer steps of QAT at most; the float network has float.epochs and float.max_steps; -1: no limit"""
    max_time: Duration | dict[str, Count] | None = None
    """longest time of QAT"""
    min_epochs: Epochs | None = None
    """epochs before which no callback may end the run"""
    min_steps: CountOrZero | None = None
    """steps before which no callback may end the run"""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """the kind of device"""
    devices: Annotated[
        Literal["auto", -1] | Annotated[int, Field(ge=1, le=128)] | list[Annotated[int, Field(ge=0, le=127)]] | str,
        Says("a number of devices from 1 to 128, a list of their indices, or auto"),
    ] = "auto"
    """how many devices, or which"""
    num_nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """number of machines"""
    strategy: Annotated[Any, Says("auto, ddp, or another strategy of Lightning's")] = "auto"
    """ddp: one process for each device"""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all processes; GPUs only"""
    precision: Precision | None = None
    """precision of the training"""
    deterministic: bool | Literal["warn"] | None = None
    """allow deterministic operations only; warn: where they exist"""
    accumulate_grad_batches: Annotated[int, Field(ge=1, le=100_000)] = 1
    """batches whose gradients are added before a step"""
    gradient_clip_val: Positive | None = None
    """clip gradients to this norm (or value)"""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """whether the norm or each value is clipped"""
    limit_train_batches: PartOfBatches | None = None
    """batches of an epoch that are used"""
    limit_val_batches: PartOfBatches | None = None
    """batches of a validation that are used"""
    limit_test_batches: Annotated[None, Says("null; data.limit_test limits the test images")] = None
    """not available: the report tests on all images"""
    limit_predict_batches: Annotated[None, Says("null: a run predicts nothing")] = None
    """not available: a run predicts nothing"""
    overfit_batches: Annotated[Literal[0], QUICK] | Annotated[float, Field(ge=0, le=0), QUICK] = 0
    """not available"""
    fast_dev_run: Annotated[Literal[False], QUICK] = False
    """not available: the report would be about a network that was not trained"""
    barebones: Annotated[Literal[False], Says("false: a run needs its checkpoints and its log")] = False
    """not available"""
    enable_checkpointing: Annotated[Literal[True] | None, Says("true: the best checkpoint is exported")] = None
    """always true"""
    val_check_interval: PartOfBatches | None = None
    """batches between two validations, in a run counted in epochs"""
    check_val_every_n_epoch: Annotated[int, Field(ge=1, le=100_000)] | None = 1
    """epochs between two validations"""
    num_sanity_val_steps: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    """validation batches that are run before training, as a check"""
    log_every_n_steps: Count | None = None
    """steps between two entries of the log"""
    enable_progress_bar: bool | None = None
    """show a progress bar, in a terminal"""
    enable_model_summary: bool | None = None
    """print the layers of the network"""
    benchmark: bool | None = None
    """let cuDNN search for the fastest kernels"""
    inference_mode: bool = True
    """validate in torch.inference_mode"""
    use_distributed_sampler: bool = True
    """give each process images of its own"""
    profiler: Literal["simple", "advanced", "pytorch", "xla"] | Annotated[Any, OneOf((), null=True)] = None
    """measure where the time goes"""
    detect_anomaly: bool = False
    """find the operation that produces NaN; slow"""
    plugins: Annotated[Any, Says("null, or a plugin of Lightning's as {_target_: ...}")] = None
    """plugins of Lightning's"""
    reload_dataloaders_every_n_epochs: Epochs = 0
    """make new dataloaders after so many epochs; 0: never"""
    enable_autolog_hparams: bool = True
    """log the hyperparameters"""
    model_registry: Text | None = None
    """Lightning's model registry"""

    def check_further(self, found: Any) -> None:
        from lightning.pytorch.strategies import StrategyRegistry

        known = {"auto", *StrategyRegistry.available_strategies()}
        if not isinstance(self.strategy, dict) and str(self.strategy) not in known:  # a list has no hash
            raise wrong(
                "{key}={value} is not possible: write auto, ddp, or another strategy of Lightning's.", "strategy"
            )
        indices = str(self.devices).split(",")
        if isinstance(self.devices, str) and self.devices != "auto" and not all(i.strip().isdigit() for i in indices):
            raise wrong("{key}={value} is not possible: write a number, a list of indices, or auto.", "devices")
        if self.accelerator == "cpu" and (isinstance(self.devices, list) or len(indices) > 1):
            raise wrong(
                "{key}={value} names GPUs, and trainer.accelerator is cpu: write a number of processes.", "devices"
            )
        self._check_length()

    def _check_length(self) -> None:
        steps, epochs = self.max_steps > 0, (self.max_epochs or 0) > 0
        if not steps and not epochs:
            raise wrong("the run has no length: set trainer.max_epochs or trainer.max_steps to 1 or more.")
        for key, given in (
            ("val_check_interval", self.val_check_interval is not None),
            ("check_val_every_n_epoch", self.check_val_every_n_epoch not in (1, None)),
        ):
            if steps and given:
                raise wrong("{key}={value} is not for a run with trainer.max_steps: write validations=N.", key)
        every, most_epochs = self.check_val_every_n_epoch or 1, self.max_epochs or 0
        if epochs and every > most_epochs:
            raise wrong(
                f"{{key}}={{value}} is more than trainer.max_epochs={most_epochs}, so nothing is validated: write fewer.",
                "check_val_every_n_epoch",
            )
        for name, least, most in (
            ("min_steps", self.min_steps or 0, self.max_steps),
            ("min_epochs", self.min_epochs or 0, self.max_epochs or -1),
        ):
            if 0 < most < least:
                raise wrong(f"{{key}}={{value}} is more than trainer.max_{name[4:]}={most}: write fewer.", name)
