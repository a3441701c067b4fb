"""Which network is exported."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from qat.training.callbacks import ExportONNX, Report
from tests.training.callbacks.comparison_fits import MAKERS, callback_of
from tests.training.user_modules import LIGHTNING, Classifier, Data, trainer

pytestmark = LIGHTNING


def test_the_best_checkpoint_is_what_is_exported(tmp_path: Path) -> None:
    class Spoiled(Classifier):
        """After its first epoch it knows nothing any more."""

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                with torch.no_grad():
                    self.net.head.weight.mul_(0.0)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/top1", mode="max")
    model = Spoiled()
    with torch.no_grad():
        model.net.head.weight.copy_(torch.eye(4).repeat_interleave(6, dim=1))
    callbacks = [*(make(tmp_path) for make in MAKERS.values()), checkpoint]
    fitting = trainer(tmp_path, *callbacks, epochs=2, enable_checkpointing=True)
    fitting.fit(model, datamodule=Data())
    results = callback_of(fitting, Report).results
    assert results.training.best_epoch == 1
    exported = callback_of(fitting, ExportONNX).artefact.network()
    assert len(exported(Data().test.tensors[0]).argmax(1).unique()) > 1
