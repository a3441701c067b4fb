"""How models and data are written on the command line."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qat.cli.errors import UsageError
from qat.cli.measure import run
from qat.cli.sources.data import Sizes, load_data
from qat.cli.sources.libraries import _huggingface_example, _made
from qat.cli.sources.model import Model, load_model
from tests.cli.user_files import made, write_user_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_user_files(tmp_path_factory.mktemp("user"))


def test_spellings_of_one_network_compute_the_same(folder: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    expected = made(folder)(x)
    own = f"{folder}/net.py:make"
    for model in (
        load_model(own),
        load_model(f"{folder}/net.safetensors", architecture=own),
        load_model(own, weights=f"{folder}/net.safetensors"),
        load_model(f"{folder}/net.pt2"),
    ):
        torch.testing.assert_close(model.network(x), expected, msg=model.name)


def test_a_program_is_quantized_as_the_network_is(folder: Path) -> None:
    import qat

    network = load_model(f"{folder}/net.pt2").network
    lines = qat.inspect(qat.prepare(network, "w8a8", torch.randn(2, 3, 8, 8))).lines
    assert [line.operation for line in lines if line.kind == "layer"] == ["Conv2d", "Linear"]
    assert not any("batch_norm" in name for name in map(str, network.graph.nodes))


def test_libraries(tmp_path: Path) -> None:
    model = load_model("torchvision:mobilenet_v3_small,num_classes=7")
    assert model.network(model.example).shape == (1, 7)
    assert "RANDOM WEIGHTS" in model.notes[0]
    with pytest.raises(UsageError, match="IMAGENET1K_V1"):
        load_model("torchvision:mobilenet_v3_small", weights="BEST")
    model = load_model("qat:resnet8,in_channels=1")
    assert model.network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_hugging_face_folders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    network = transformers.BertForSequenceClassification(config).eval()
    network.save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    with torch.no_grad():
        torch.testing.assert_close(model.network(**model.example).logits, network(**model.example).logits)


def test_arrays_and_functions_give_inputs_and_labels(folder: Path) -> None:
    model = load_model(f"{folder}/net.py:make")
    data = load_data(f"{folder}/data.npz", model, Sizes(train=20, test=None, batch=16))
    with np.load(folder / "data.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    train, test = list(data.train), list(data.test)
    assert [len(batch) for batch in train] == [16, 4]
    np.testing.assert_array_equal(train[1].inputs, x[32:36].astype(np.float32))
    np.testing.assert_array_equal(torch.cat([b.inputs for b in test]), np.r_[x[16:32], x[48:64]].astype(np.float32))
    labels = [b.labels for b in test]
    np.testing.assert_array_equal(torch.cat([b for b in labels if b is not None]), np.r_[y[16:32], y[48:64]])
    data = load_data(f"{folder}/net.py:batches", model, Sizes(batch=16))
    assert data.labelled
    assert len(list(data.train)) == len(list(data.test)) == 2


def test_arrays_have_the_names_of_a_files_inputs(tmp_path: Path) -> None:
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "abc"]
    nodes = [onnx.helper.make_node("Sub", ["a", "b"], ["c"])]
    graph = onnx.helper.make_graph(nodes, "difference", inputs[:2], inputs[2:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "d.onnx",
    )
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", b=b, a=a)
    model = load_model(str(tmp_path / "d.onnx"))
    batch = next(iter(load_data(str(tmp_path / "d.npz"), model, Sizes()).test))
    np.testing.assert_array_equal(run(model.network, batch.inputs).numpy(), a - b)


@pytest.mark.parametrize(("name", "labelled"), [("images", False), ("classes", True)])
def test_folders_of_images(folder: Path, name: str, labelled: bool) -> None:
    model = load_model(f"{folder}/net.py:make")
    data = load_data(str(folder / name), model, Sizes(batch=2, image=8))
    assert data.labelled == labelled
    shapes = [tuple(batch.inputs.shape) for batch in [*data.train, *data.test]]
    assert shapes == [(2, 3, 8, 8), (2, 3, 8, 8)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_the_users_own_says_how_images_become_its_inputs(tmp_path: Path, channels: int) -> None:
    mean, std = [0.1, 0.2, 0.3][:channels], [0.5, 0.25, 2.0][:channels]
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef make():\n    network = nn.Flatten()\n"
        f"    network.preprocessing = dict(size=8, mean={mean}, std={std})\n    return network\n"
    )
    model = load_model(f"{tmp_path}/own.py:make")
    assert model.example.shape == (1, channels, 8, 8)
    (tmp_path / "images").mkdir()
    for i, level in enumerate((51, 204)):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"images/{i}.png")
    data = load_data(str(tmp_path / "images"), model, Sizes(batch=2))
    x = torch.cat([batch.inputs for part in (data.train, data.test) for batch in part]).sort(0).values
    wanted = (torch.tensor([[51.0], [204.0]]) / 255 - torch.tensor(mean)) / torch.tensor(std)  # (image, channel)
    torch.testing.assert_close(x, wanted[:, :, None, None].expand(2, channels, 8, 8), atol=1e-4, rtol=0)
    assert not any("ImageNet" in note for note in data.notes)


@pytest.mark.parametrize(
    "wrong",
    [
        "{'size': 8, 'mean': [0.5], 'std': [0]}",
        "{'pixels': 8}",
        "{'size': 8, 'mean': [0.5, 0.5], 'std': [1.0]}",
        "{'size': 0}",
    ],
)
def test_a_preprocessing_that_says_nothing_is_refused(tmp_path: Path, wrong: str) -> None:
    text = f"from torch import nn\ndef make():\n    n = nn.Flatten()\n    n.preprocessing = {wrong}\n    return n\n"
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(UsageError, match="'size': pixels per side, 'mean'"):
        load_model(f"{tmp_path}/wrong.py:make")


def test_known_data_are_normalised_and_fitted_to_the_model() -> None:
    from sklearn.datasets import load_digits

    data = load_data("digits", Model("m", torch.nn.Identity()), Sizes(train=3, test=5, batch=5))
    batch = next(iter(data.test))
    assert batch.inputs.shape == (5, 1, 8, 8)
    originals = torch.from_numpy(load_digits().images).float() / 16
    image = batch.inputs[0, 0] * 0.3762 + 0.3060
    assert float((originals - image).abs().amax((1, 2)).min()) < 0.01  # it is one of scikit-learn's
    rgb = Model("m", torch.nn.Identity(), example=torch.zeros(1, 3, 8, 8))
    assert next(iter(load_data("digits", rgb, Sizes()).train)).inputs.shape[1] == 3


def test_a_network_of_neither_images_nor_words_asks_for_the_shape_of_its_inputs() -> None:
    network, config = SimpleNamespace(main_input_name="input_values"), SimpleNamespace()
    model = Model("hf:sound", nn.Identity(), example=_huggingface_example(network, config))
    with pytest.raises(UsageError, match="what hf:sound takes is not known: add --input-shape"):
        load_data("random", model, Sizes(4, 4, 2))


def test_noise_has_the_shape_of_the_example_and_is_said() -> None:
    words = torch.randint(0, 50, (1, 6))
    model = Model("m", torch.nn.Identity(), example={"input_ids": words, "mask": torch.ones_like(words)})
    data = load_data("random", model, Sizes(train=5, test=3, batch=4))
    batches = list(data.train)
    assert [len(batch) for batch in batches] == [4, 1]
    assert bool((batches[0].inputs["mask"] == 1).all())
    assert isinstance(batches[0].inputs["input_ids"], Tensor)
    assert data.notes[0].startswith("NOISE")
    with pytest.raises(UsageError, match=r"--input-shape 3,224,224, or give the module an attribute example_inputs\.$"):
        load_data("random", Model("m", torch.nn.Identity()), Sizes())


@pytest.mark.parametrize("kind", [socket.gaierror, ConnectionResetError, TimeoutError])
@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_without_a_connection_it_says_what_to_give_instead(kind: type[OSError], prefix: str) -> None:
    def make() -> None:
        try:
            try:
                raise kind("no route")
            except kind as error:
                raise URLError(error) from None
        except URLError as error:
            raise OSError("see the documentation") from error

    instead = "its folder, hf:FOLDER" if prefix else "a file of its weights, --weights FILE"
    said = f"{prefix}net cannot be downloaded ({kind.__name__}: no route): connect this machine, or write {instead}."
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        _made(f"{prefix}net", make)
    with pytest.raises(UsageError, match=r"^net cannot be made: ZeroDivisionError"):
        _made("net", lambda: 1 / 0)


def test_a_file_that_is_no_image_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    model = load_model(f"{folder}/net.py:make")
    with pytest.raises((UsageError, ValueError), match=r"a\.png"):
        list(load_data(str(tmp_path), model, Sizes(image=8)).test)
