"""Your own LightningModule: quantization-aware training, its baselines, the file and the report are callbacks.

python examples/lightning_module.py
"""

import copy

import lightning as L
import torch
import torch.nn.functional as F
from digits import float_network, test, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import qat


class Classifier(L.LightningModule):
    """Nothing in it is about quantization."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], index: int) -> None:
        self.log("test/acc", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


FOLDER = "outputs/examples/lightning_module"
images, labels = train
training = DataLoader(TensorDataset(images, labels), 64, shuffle=True, drop_last=True)
testing = DataLoader(TensorDataset(*test), 250)
report = qat.callbacks.Report(FOLDER, metric="test/acc", dataloaders=testing)

L.seed_everything(0, verbose=False)
trainer = L.Trainer(
    max_epochs=6,
    accelerator="cpu",
    callbacks=[
        qat.callbacks.QuantizationAwareTraining("w2a4"),  # this line alone is quantization-aware training
        qat.callbacks.PTQBaselines(),
        qat.callbacks.ExportONNX(f"{FOLDER}/model.onnx", dataloaders=testing),  # fails unless the file is verified
        report,
    ],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Classifier(copy.deepcopy(float_network())).train(), training)
assert report.results is not None
print(f"{FOLDER}/report.html: {report.results.verdict.text}")
