"""From the best checkpoint to verified files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn

from qat.arguments import as_path, check_kind
from qat.capture import copy_model
from qat.export import TARGETS, Target
from qat.export.targets import target_named
from qat.export.unverified import unverified_path
from qat.files import check_writable
from qat.integer import convert
from qat.training.callbacks.pruning import Pruning
from qat.training.callbacks.ptq_baselines import PTQBaselines
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison.artefact import Artefact, one_sample, positional_test_inputs, write_artefact
from qat.training.comparison.best_model import best_model
from qat.training.lightning.callback_lookup import FitReport, check_alone, find_callback, require_callback
from qat.training.lightning.evaluation_data import NO_TEST_DATA, has_test_data
from qat.training.lightning.rank_zero import run_on_rank_zero
from qat.transform import Policy


class ExportONNX(L.Callback):
    """At the end of a fit, converts the best checkpoint to integers, writes the ONNX file, and verifies it.

    The verification compares every code of every site in ONNX Runtime with the integer model, over the whole test set.
    `artefact` holds the result. The file has its name only if it passed; else it is called `model.unverified.onnx`, and the
    fit ends with a `qat.export.VerificationError`, after its report if there is one. With several processes only the first
    does this, and only it has an `artefact`. Needs a `QuantizationAwareTraining` beside it, in any order.

    Args:
        path: the file to write. It is written whole or not at all.
        float_path: where to write the float network as well, to compare size and latency.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
        targets: further targets (`qat.export.TARGETS`) that get a file of the same integer model, each verified in its own
            runtime: names, or name -> name of the file; by default `model_portable.onnx` beside `model.onnx`.

    Raises:
        ValueError: there is no such target, or two files have one name; or, when the fit begins, there are no test data, the
            network has no ONNX form, a file cannot be written, or a target cannot run the policy.
        ImportError: when the fit begins: the runtime of a target is not installed.
        VerificationError: the file differs from the integer model, or that from what was trained, or weights that `Pruning`
            pruned are not zero in it (when the fit ends).
    """

    def __init__(
        self,
        path: str | Path = "model.onnx",
        float_path: str | Path | None = None,
        dataloaders: Any = None,
        targets: str | Iterable[str] | Mapping[str, str | None] = (),
    ) -> None:
        self.path = as_path(path)
        TARGETS[0].check_suffix(self.path)
        check_kind("targets", targets, (str, Iterable), "a list of targets, as ['portable']")
        listed = [targets] if isinstance(targets, str) else targets
        names = dict(listed) if isinstance(listed, Mapping) else dict.fromkeys(listed)
        if (named := names.pop(TARGETS[0].name, None)) is not None:
            raise ValueError(f"targets has {named!r} for {TARGETS[0].name}, whose file is path: write path={named}.")
        self.targets: dict[Target, Path] = {}
        for name, file in names.items():
            target = target_named(name)
            own = target.path(self.path) if file is None else self.path.parent / as_path(file, f"targets.{name}")
            target.check_suffix(own)
            self.targets[target] = own
        self.float_path = None if float_path is None else as_path(float_path, "float_path")
        if self.float_path is not None:
            TARGETS[0].check_suffix(self.float_path)
        self.check_names({})
        self.dataloaders = dataloaders
        self.artefact: Artefact | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        check_alone(trainer, self, "whose targets are all further files")
        if stage == "fit":
            self.artefact = None
            if not has_test_data(trainer, pl_module, self.dataloaders):
                raise ValueError(NO_TEST_DATA)
            self.check_policy(require_callback(trainer, QuantizationAwareTraining, self).policy)
            ptq = find_callback(trainer, PTQBaselines)
            self.check_names({} if ptq is None else ptq.outside_files(trainer.default_root_dir))
            for file in self._files({}).values():
                check_writable(file)
                check_writable(unverified_path(file))

    def check_names(self, others: Mapping[str, Path]) -> None:
        """Check that no file is written over another one. others: what writes them -> files that the fit writes beside these.

        Raises:
            ValueError: two have one name.
        """
        taken: dict[Path, str] = {}
        for what, file in self._files(others).items():
            for name in (file, unverified_path(file)):
                if (first := taken.setdefault(name.absolute(), what)) != what:
                    raise ValueError(f"{first} and {what} both write {name.name}: give one of them another name.")

    def _files(self, others: Mapping[str, Path]) -> dict[str, Path]:
        """What writes them -> the files of a fit."""
        own = {"path": self.path, "float_path": self.float_path, "the best PTQ row": self._ptq_path}
        own |= {f"targets.{target.name}": file for target, file in self.targets.items()}
        return {what: file for what, file in {**own, **others}.items() if file is not None}

    def check_policy(self, policy: Policy) -> None:
        """Check that each target can run networks of this policy, and that its runtime is installed.

        Raises:
            ValueError: a target cannot run them; the message says what to write instead.
            ImportError: a runtime is not installed.
        """
        for target in self.targets:
            target.check(policy)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the untrained network to a temporary folder: a network without an ONNX form fails before training."""
        run_on_rank_zero(trainer, partial(self._try_export, trainer, pl_module))

    def _try_export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        example = next(self._test_inputs(trainer, pl_module)())
        with tempfile.TemporaryDirectory() as folder:
            integer = convert(copy_model(qat.network_of(pl_module)).cpu().float())
            for target, path in {TARGETS[0]: self.path, **self.targets}.items():
                target.write(integer, one_sample(example), Path(folder) / path.name)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def export_without_result() -> None:  # `run_on_rank_zero` sends results to the other processes
            artefact = self.export(trainer, pl_module)
            if find_callback(trainer, FitReport) is None:
                artefact.require_passed()

        run_on_rank_zero(trainer, export_without_result)

    def export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Artefact:
        """The artefact of this fit, made on the first call. Only process 0 may call it."""
        if self.artefact is None:
            qat, ptq = (
                require_callback(trainer, QuantizationAwareTraining, self),
                find_callback(trainer, PTQBaselines),
            )
            outside = ptq.outside_networks if ptq is not None else {}
            pruning = find_callback(trainer, Pruning)
            self.artefact = write_artefact(
                best_model(trainer, qat.network_of(pl_module), qat.network_name or "", qat.staged).network,
                self._test_inputs(trainer, pl_module),
                self.path,
                qat.original_network or qat.float_network,
                self.float_path,
                other_files={name: network.path for name, network in outside.items()},
                targets=self.targets,
                failure=(lambda integer: "") if pruning is None else (lambda integer: pruning.report(integer).failure),
            )
        return self.artefact

    def export_ptq(self, trainer: L.Trainer, pl_module: L.LightningModule, network: nn.Module) -> Artefact:
        """Write and verify the file of a PTQ network, too: `model_ptq.onnx` beside `model.onnx`. Only process 0 may call it."""
        return write_artefact(network, self._test_inputs(trainer, pl_module), self._ptq_path, time_it=False)

    @property
    def reads_float_network(self) -> bool:
        """Whether the float network is written, too."""
        return self.float_path is not None

    @property
    def _ptq_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_ptq{self.path.suffix}")

    def _test_inputs(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> Callable[[], Iterator[tuple[Tensor, ...]]]:
        qat = require_callback(trainer, QuantizationAwareTraining, self)
        return partial(
            positional_test_inputs, trainer, pl_module, qat.network_of(pl_module), qat.inputs, self.dataloaders
        )
