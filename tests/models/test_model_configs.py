from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from torch import nn

from qat.models import check_model
from tests.paths import CONFIGS

CONFIGS = sorted((CONFIGS / "model").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_a_model_for_the_callers_data(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["_target_"].startswith("qat.models.")
    assert not {"num_classes", "in_channels", "checkpoint"} & config.keys()  # these come from the data and the run
    model = instantiate(config, num_classes=7, in_channels=3)
    check_model(model, (3, 28, 28), 7)


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem.startswith("resnet")], ids=lambda path: path.stem
)
def test_a_resnet_config_has_the_depth_of_its_name(path: Path) -> None:
    model = instantiate(yaml.safe_load(path.read_text()))
    assert f"resnet{sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())}" == path.stem.partition("_")[0]
