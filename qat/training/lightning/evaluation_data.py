"""The test dataloaders of a LightningModule or its datamodule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L

NO_TEST_DATA = (
    "there is no test data to measure on: give trainer.fit a datamodule with test_dataloader, or pass "
    "dataloaders=... to the callback."
)


def has_test_data(trainer: L.Trainer, module: L.LightningModule, dataloaders: Any = None) -> bool:
    """Whether `find_test_dataloaders` will find dataloaders."""
    source: Any = getattr(trainer, "datamodule", None) or module
    base = L.LightningModule if isinstance(source, L.LightningModule) else L.LightningDataModule
    return dataloaders is not None or type(source).test_dataloader is not base.test_dataloader


def find_test_dataloaders(
    trainer: L.Trainer, module: L.LightningModule, dataloaders: Any = None
) -> list[Iterable[Any]]:
    """The test dataloaders: `dataloaders` if given, else those of the datamodule, else those of the module.

    Raises:
        ValueError: there are none.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if dataloaders is not None:
        found = dataloaders
    elif datamodule is not None:
        datamodule.setup("test")
        found = datamodule.test_dataloader()
    elif has_test_data(trainer, module):
        found = module.test_dataloader()
    else:
        raise ValueError(NO_TEST_DATA)
    found = list(found.values()) if isinstance(found, Mapping) else found
    return list(found) if isinstance(found, list | tuple) else [found]
