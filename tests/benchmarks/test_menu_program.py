"""The menu's cells, on a tiny network and noise."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from omegaconf import open_dict

import qat
from benchmarks import menu
from benchmarks.pipeline import noise
from qat.models import ResNetCifar
from qat.ptq import Calibrate, apply_passes


@pytest.fixture
def cell(tmp_path, monkeypatch):
    monkeypatch.setattr(menu, "STEPS", 2)

    def configuration(row, policy="w4a4", seed=0):
        config = menu.compose_config(row, policy, seed, tmp_path / "none.safetensors", tmp_path)
        with open_dict(config):
            config.batch_size, config.calibration_images = 8, 8
        return config

    return configuration


@pytest.mark.filterwarnings("ignore:.*has fallen to its floor")  # training on noise
@pytest.mark.parametrize("row", ["lsq, distilled, learning rate 0.04", "sawb + pact"])
def test_a_cell_is_trained_from_the_float_network(row, cell):
    network, data = ResNetCifar(8, width=4), noise(16)
    before = copy.deepcopy(network.state_dict())
    result = menu.measure_training(cell(row, menu.SINGLE_POLICY.get(row, ("w4a4",))[0]), data, network)
    assert 0 <= result["top1"] <= 1
    assert result["loss"] > 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "row", [r if i == 0 else pytest.param(r, marks=pytest.mark.slow) for i, r in enumerate(menu.ROWS)]
)
def test_every_row_can_be_prepared(row, cell):
    for policy in menu.SINGLE_POLICY.get(row, menu.POLICIES):
        prepared = qat.prepare(ResNetCifar(8, width=4), menu.build.policy(cell(row, policy)), torch.zeros(2, 3, 32, 32))
        assert qat.transform.is_prepared(prepared)


@pytest.mark.parametrize("row", ["PTQ min-max", "PTQ MSE"])
def test_a_ptq_row_is_the_calibrated_network(row, cell):
    """The measured network is the one that calibration alone produces."""
    config, data, network = cell(row, "w2a2"), noise(64), ResNetCifar(8, width=4)
    result = menu.measure_ptq(row, config, data, network)
    observer = {"PTQ min-max": "MinMax", "PTQ MSE": "MSE"}[row]
    batches = menu.build.datamodule(config, data).calibration_batches(config.calibration_images, seed=config.seed)
    other = apply_passes([Calibrate(observer)], network, menu.build.policy(config), batches, seed=config.seed)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    images, labels = torch.stack([x for x, _ in data.test]), torch.stack([y for _, y in data.test])
    loss = torch.nn.functional.cross_entropy(other.eval()((images / 255 - mean) / std), labels)
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_every_pass_of_the_ladder_is_measured(cell):
    assert sorted(menu.LADDER) == sorted(cell("lsq").ptq.ladder)


def test_the_first_and_the_last_layer_have_eight_bits(cell):
    for row in ("lsq", "apot"):
        rules = menu.build.policy(cell(row, "w2a2")).assign([("a", "Conv2d"), ("b", "Conv2d"), ("c", "Linear")])
        assert [rule.weight.bits for rule in rules.values()] == [8, 2, 8]
        assert [rule.activation.bits for rule in rules.values()] == [8, 2, 8]


def test_what_is_recorded_is_not_measured_again(tmp_path):
    everything = list(menu.missing_cells(tmp_path, ("lsq", "nf4"), ("w4a4", "w2a2"), (0, 1)))
    assert everything[0] == ("lsq", "w4a4", 0)
    assert len(everything) == 4 + 2
    about = {"data": "noise", "test": 16, "float": 0.5}
    menu.write_cell(tmp_path, "lsq", "w4a4", 0, {"top1": 0.25}, about)
    menu.write_cell(tmp_path, "lsq", "w2a2", 0, {"top1": 0.125}, about)
    rest = list(menu.missing_cells(tmp_path, ("lsq", "nf4"), ("w4a4", "w2a2"), (0, 1)))
    assert rest == [cell for cell in everything if cell not in (("lsq", "w4a4", 0), ("lsq", "w2a2", 0))]


def test_a_cell_says_its_commit(tmp_path):
    menu.write_cell(tmp_path, "lsq", "w4a4", 0, {"top1": 0.25}, {})
    written = json.loads((tmp_path / "lsq.json").read_text())
    assert written["cells"]["w4a4, seed 0"]["commit"] == written["environment"]["commit"]


def test_a_row_has_its_own_data(tmp_path, monkeypatch):
    """A row must not be measured on data that another row has changed."""
    used = []
    monkeypatch.setattr(menu.build, "part", lambda section, *_: used.append(section.crop_padding) or noise(16))
    monkeypatch.setattr(menu.float_network, "check_source", lambda *_: None)
    monkeypatch.setattr(menu.float_network, "load_or_train", lambda *_: None)
    monkeypatch.setattr(menu, "test_metrics", lambda *_: {"top1": 0.5})
    monkeypatch.setattr(menu, "measure_training", lambda *_: {"top1": used[-1] / 8, "minutes": 0})
    places = ["--checkpoint", tmp_path, "--data", tmp_path, "--out", tmp_path]
    rows = ["--rows", "lsq", "lsq, distilled, uncropped", "--policies", "w3a3", "--seeds", 0, "--threads", 1]
    monkeypatch.setattr("sys.argv", ["menu", *map(str, [*places, *rows])])
    menu.main()
    top1 = {p.stem: json.loads(p.read_text())["cells"]["w3a3, seed 0"]["top1"] for p in tmp_path.glob("*.json")}
    assert top1 == {"lsq": 0.5, "lsq_distilled_uncropped": 0.0}
