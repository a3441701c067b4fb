"""A metric of which less is better: regression, compared by its mean absolute error.

python examples/regression.py
"""

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import qat


class Regressor(L.LightningModule):
    def __init__(self, network: nn.Module, lr: float) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.smooth_l1_loss(self.network(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], index: int) -> None:
        self.network(batch[0])  # a torchmetrics object in Report compares what the network returns with the targets

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr, weight_decay=0.1)


def fit(network: nn.Module, epochs: int, lr: float, *callbacks: L.Callback) -> nn.Module:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regressor(network.train(), lr), training)
    return network


# Disease progression of 442 patients from ten measurements.
measurements, progression = load_diabetes(return_X_y=True, scaled=True)
inputs = torch.tensor(measurements, dtype=torch.float32) * 20
targets = (torch.tensor(progression, dtype=torch.float32)[:, None] - 152) / 77
training = DataLoader(TensorDataset(inputs[:330], targets[:330]), 33, shuffle=True)
testing = DataLoader(TensorDataset(inputs[330:], targets[330:]), 112)

L.seed_everything(0, verbose=False)
network = fit(nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)), 15, 1e-3)

FOLDER = "outputs/examples/regression"
report = qat.callbacks.Report(FOLDER, torchmetrics.MeanAbsoluteError(), mode="min", dataloaders=testing)
callbacks = [
    qat.callbacks.QuantizationAwareTraining("w2a4"),
    qat.callbacks.PTQBaselines(),
    qat.callbacks.ExportONNX(f"{FOLDER}/model.onnx", dataloaders=testing),  # fails unless the file is verified
    report,
]
fit(network, 10, 3e-4, *callbacks)
assert report.results is not None
print(f"{FOLDER}/report.html: {report.results.verdict.text}")
