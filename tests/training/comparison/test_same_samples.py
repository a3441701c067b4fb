"""All rows of a report are measured on the same samples in the same order, and a fit is the same with and without one."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from qat.report.judgement.paired import SampleScores
from qat.training.callbacks import ExportONNX, PTQBaselines, Report
from qat.training.comparison.evaluate import Evaluation
from qat.training.comparison.metric_reading import Reading
from qat.training.comparison.report_metric import ReportMetric
from qat.training.comparison.rows import compare_rows
from qat.training.lightning.random_numbers import seeded
from tests.training.callbacks.comparison_fits import MAKERS
from tests.training.user_modules import LIGHTNING, Classifier, Data, images, trainer

pytestmark = LIGHTNING


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws noise as datasets do: with numpy, or with Python."""

    def __init__(self) -> None:
        self.images = images(24, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, y = self.images[i]
        return x + float(np.random.rand()) + random.random(), y  # noqa: NPY002


class Sees(Classifier):
    """Notes the samples of every test, and draws random numbers while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        _ = random.random(), np.random.rand()  # noqa: NPY002
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen.append(batch[0].clone())
        super().test_step(batch, batch_idx)


def shuffling(generator: Generator) -> DataLoader[Any]:
    data = Noisy()
    return DataLoader(data, 12, sampler=RandomSampler(data, generator=generator))


def test_every_row_is_measured_on_the_same_samples(tmp_path: Path) -> None:
    loader = shuffling(generator := Generator().manual_seed(3))
    model, before = Sees(), generator.get_state()
    export = ExportONNX(tmp_path / "model.onnx", dataloaders=loader)
    report = Report(tmp_path, dataloaders=loader)
    trainer(tmp_path, MAKERS["qat"](tmp_path), PTQBaselines(["MSE"]), export, report).fit(
        model, DataLoader(images(64), 32)
    )
    _, *seen = model.seen  # the first batch tells what the metric is
    rows = [torch.cat(seen[i : i + 2]) for i in range(0, len(seen), 2)]
    assert report.results is not None
    assert len(rows) == len(report.results.rows) == 6
    assert all(torch.equal(row, rows[0]) for row in rows)
    assert torch.equal(generator.get_state(), before)


def test_training_does_not_depend_on_what_is_written(tmp_path: Path) -> None:
    found = []
    for names in (["qat"], ["qat", "export"]):
        torch.manual_seed(5)
        model = Classifier()
        torch.manual_seed(5)
        trainer(tmp_path, *(MAKERS[name](tmp_path) for name in names)).fit(model, datamodule=Data())
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_random_numbers_go_on_behind_what_was_seeded_whatever_ends_it() -> None:
    generator = Generator().manual_seed(1)
    loader = shuffling(generator)

    def drawn() -> Any:
        with seeded(0, [loader]):
            yield torch.rand(1).item(), np.random.rand(), random.random(), next(iter(loader))  # noqa: NPY002

    def now() -> Any:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            generator.get_state(),
        )

    before = now()
    first, second = next(drawn()), next(drawn())
    assert first[:3] == second[:3]
    assert torch.equal(first[3][0], second[3][0])
    assert before[:3] == now()[:3]
    assert torch.equal(before[3], now()[3])


def test_targets_in_another_order_are_not_compared_in_pairs() -> None:
    def entry(name: str, targets: Tensor) -> Any:
        reading = Reading(ReportMetric("test/mae", "min"), targets=[targets])
        scores = SampleScores(values=np.arange(4.0), weights=np.ones(4))
        return type("Entry", (), {"name": name}), Evaluation({}, None, reading, scores=scores)

    numbers = torch.tensor([0.5, 1.5, 2.5, 3.5])
    measured = [entry("a", numbers), entry("b", numbers.clone()), entry("c", numbers.flip(0))]
    assert compare_rows(measured, "a", "b") is not None
    assert compare_rows(measured, "a", "c") is None
