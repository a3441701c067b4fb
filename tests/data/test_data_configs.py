import inspect
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_method, instantiate

from qat.data import digits
from tests.paths import CONFIGS

CONFIGS = sorted((CONFIGS / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_shows_every_option_with_its_default(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    target = get_method(config.pop("_target_"))
    assert config == {name: option.default for name, option in inspect.signature(target).parameters.items()}
    assert path.stem == target.__name__


def test_a_config_opens_its_data() -> None:
    (path,) = (path for path in CONFIGS if path.stem == "digits")
    data = instantiate(yaml.safe_load(path.read_text()))
    assert len(data.train) == len(digits().train)
