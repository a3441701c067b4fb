"""What is not possible is said in one sentence, and the exit status is 2."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from qat.cli.main import main
from tests.cli.user_files import write_user_files

NET = "quantize --output x.onnx --model net.py:make"
"""The beginning of a command that lacks a method."""
POST_TRAINING = f"{NET} --method post_training"
MISTAKES = {
    "no data": (POST_TRAINING, "digits, mnist"),
    "no suffix": ("quantize --model net.py:make --output x.bin --method dynamic", "onnxruntime"),
    "no target": (f"{NET} --method dynamic --target onxruntime", "did you"),
    "policy": (f"{NET} --method dynamic --policy w8", "weight_only"),
    "preset": (f"{NET} --method dynamic --policy w8b", "w8b"),
    "bits": (f"{NET} --method weight_only --policy w9", "bits=9 is not"),
    "bits of a diagnosis": ("inspect net.py:make --policy w9", "bits=9 is not"),
    "no layers": ("inspect net.py:without_layers --data data.npz", "matches no layer"),
    "nothing to quantize": (
        "quantize --output x.onnx --model net.py:without_layers --method post_training --data random --input-shape 3,8,8",
        "matches no layer",
    ),
    "steps": (f"{NET} --method dynamic --steps 3", "leave them out"),
    "rate": (f"{POST_TRAINING} --data data.npz --learning-rate 0.1", "leave them out"),
    "seed": (f"{NET} --method dynamic --seed -1", "-1 is not a whole number from 0"),
    "model": ("benchmark resnet18", "torchvision:NAME"),
    "name": ("benchmark torchvision:resnet19", "resnet18"),
    "function": ("benchmark net.py:mak", "it has"),
    "raises": ("benchmark net.py:fails", "no such thing"),
    "raises once": ("benchmark net.py:fails", "(RuntimeError: no such thing)"),
    "ends the program": ("benchmark net.py:ends", "net.py:ends() gives no model (SystemExit: 3)"),
    "no network": ("benchmark net.py:gives_a_number", "gives an int: write"),
    "weights of a library": ("inspect torchvision:resnet18 --weights BEST", "write DEFAULT, IMAGENET1K_V1 or a file"),
    "weights of a function": ("inspect net.py:make --weights DEFAULT", "net.py:make, which has weights of its own"),
    "weights of none": ("benchmark net.py:make --weights DEFAULT", "--weights is for none"),
    "weights nowhere": ("inspect net.py:make --weights no.pt", "no.pt does not exist: write the path"),
    "architecture": ("inspect net.py:make --architecture net.py:make", "net.py:make is not: leave it out"),
    "damaged weights": ("benchmark bad.ckpt", "bad.ckpt is not a checkpoint"),
    "batches of text": (
        "benchmark net.py:make --data net.py:yields_text",
        "net.py:yields_text gives no batch (TypeError",
    ),
    "batches end early": (f"{POST_TRAINING} --data net.py:yields_once", "gives no batch (KeyError: 'image')"),
    "metric": ("benchmark net.py:make --data data.npz --metric net.py:make", "--metric net.py:make gives no number"),
    "metric without labels": ("benchmark net.py:make --metric acc", "--metric acc does not exist: write accuracy, mae"),
    "metric first": ("benchmark nowhere.py:make --metric acc", "--metric acc does not exist"),
    "metric's file first": ("benchmark nowhere.py:make --metric none.py:f", "none.py does not exist"),
    "policy first": ("quantize --output x.onnx --model nowhere.py:make --method dynamic --policy w8b", "w8b"),
    "policy of a diagnosis first": ("inspect nowhere.py:make --policy w8b", "w8b"),
    "policy of layers first": ("latency nowhere.py:make --output t.yaml --policy w8b", "w8b"),
    "widths first": (
        "latency nowhere.py:make --output t.yaml --weight-bits 4,99",
        "weight_bits=[4, 99] is not possible",
    ),
    "shape": ("benchmark net.py:make --data net.py:grey_images", "does not run on --data net.py:grey_images"),
    "no shape": ("benchmark net.py:make --input-shape 3,x,8", "3,x,8 is not a shape"),
    "shape of data": (
        "benchmark net.py:make --data data.npz --input-shape 3,8,8",
        "--input-shape is the shape of noise",
    ),
    "size of arrays": ("benchmark net.py:make --data data.npz --image-size 8", "--image-size scales images"),
    "of one": ("benchmark net.py:make net.py:grey --data data.npz", "net.py:grey does not run"),
    "nan": ("inspect net.py:make --data net.py:not_numbers", "--data net.py:not_numbers holds NaN"),
    "nan later": ("benchmark net.py:make --data net.py:not_numbers_later", "--data net.py:not_numbers_later holds NaN"),
    "nan in labels": (
        "benchmark net.py:make --data net.py:no_targets",
        "net.py:no_targets holds NaN or infinity in labels",
    ),
    "numbers as batches": ("benchmark net.py:make --data net.py:numbers", "no inputs whose first axis is samples"),
    "labels alone": ("benchmark net.py:make --data labels.npz", "no inputs whose first axis is samples"),
    "labels twice": ("benchmark net.py:make --data twice.npz", "has labels twice, as y and as label: leave one out"),
    "array that nobody takes": (
        "benchmark net.py:make --data unnamed.npz",
        "unnamed.npz has classes, which is neither an argument of the model (input) nor labels (y, label",
    ),
    "no arrays": ("inspect net.py:make --data empty.npz", "empty.npz holds no arrays by name"),
    "itself": ("quantize --model net.pt2 --output net.pt2 --method dynamic", "the model itself"),
    "no folder": ("quantize --model m --output net.py/x.onnx --method dynamic", "net.py is not a folder"),
    "weights alone": ("benchmark net.safetensors", "--architecture"),
    "no file": ("benchmark no.onnx", "does not exist"),
    "no onnx": ("benchmark bad.onnx", "bad.onnx is not an ONNX file"),
    "labels": ("benchmark net.py:make --data images --metric accuracy", "needs labels"),
    "data": ("benchmark net.py:make --data digit", "--data digit is neither a file nor a name"),
    "data of another kind": ("benchmark net.py:make --data net.safetensors", "is of no kind that is read: write"),
    "no samples": (f"{POST_TRAINING} --data net.py:yields_nothing", "net.py:yields_nothing has no samples: leave"),
    "two inputs": (f"{POST_TRAINING} --data net.py:yields_three", "takes 1 of the 2 inputs of --data net.py:yields"),
    "depth": ("benchmark qat:resnet20,depth=8", "depth of qat:resnet20 is chosen by its name"),
    "picture": ("benchmark net.py:make --chart speed.pdf", "write one that ends in .png"),
    "folder of a picture": ("benchmark net.py:make --chart new/speed.png", "new is not a folder that takes files"),
    "picture in a file": ("inspect net.py:make --plot net.py/x.png", "net.py is not a folder"),
    "folder of a table": ("latency net.py:make --output new/times.yaml", "new is not a folder"),
    "folder as a table": ("latency net.py:make --output images", "images is a folder: write a file in it"),
    "seems writable": (
        "quantize --model m --output /proc/x.onnx --method dynamic",
        "/proc is not a folder that takes files",
    ),
    "classes": (
        f"{POST_TRAINING} --data net.py:of_other_classes",
        "net.py:of_other_classes is 99, and the model has 4",
    ),
    "negative": ("benchmark net.py:make --data net.py:of_negative_classes", "is -3, and the model has 4 outputs"),
    "classes of a diagnosis": ("inspect net.py:make --data net.py:of_other_classes", "is 99, and the model has 4"),
    "targets": (f"{POST_TRAINING} --data net.py:of_other_targets", "mae needs (8, 4)"),
    "empty data": (f"{POST_TRAINING} --data ''", "--data is empty"),
    "empty policy": (f"{NET} --method dynamic --policy=", "--policy is empty"),
    "threads": (f"{NET} --method dynamic --threads 100000", "threads from 1 to 1024"),
    "capitals": (f"{NET} --method dynamic --policy W4A8", "did you mean w4a8?"),
    "folder as a model": ("benchmark images.onnx", "images.onnx is a folder"),
    "folder to verify": ("verify images", "images is a folder"),
    "folder without images": (f"{POST_TRAINING} --data nested", "nested is not a folder with images by class"),
    "one run": ("compare images", "two or more"),
    "no run": ("compare images classes", "results.json"),
    "files as runs": ("compare net.pt2 net.safetensors", "net.pt2 is not text: give the folder of a run"),
    "widths": ("latency net.py:make --output t.yaml --weight-bits 4,,8", "'4,,8' is not a list of widths, such as 4,8"),
    "example": (
        "benchmark net.py:says_a_path",
        "net.py:says_a_path has example_inputs='x.npy': write what its forward",
    ),
    "no option": (f"{NET} --metod dynamic", "unknown option --metod; did you mean --method?"),
    "no option at all": (f"{NET} --foo", "unknown option --foo; qat quantize --help lists those"),
    "no value": (
        "benchmark net.py:make --seconds",
        "--seconds: expected one argument (qat benchmark --help says more)",
    ),
    "no option of train": ("train --multirum seed=1,2", "unknown option --multirum; did you mean --multirun?"),
    "override as an option": ("train --recipe=digits_w8a8", "write recipe=digits_w8a8, without the dashes"),
    "no value in train": ("train recipe=digits_w8a8 --cfg", "--cfg: expected one argument"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_user_files(tmp_path_factory.mktemp("user"))
    for name in ("bad.onnx", "bad.ckpt"):
        (folder / name).write_bytes(b"nothing")
    (folder / "images.onnx").mkdir()
    (folder / "nested" / "cats").mkdir(parents=True)
    (folder / "empty.npz").write_bytes(b"PK\5\6" + bytes(18))
    x, y = np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, np.int64)
    np.savez(folder / "labels.npz", y=y)
    np.savez(folder / "twice.npz", x=x, y=y, label=y)
    np.savez(folder / "unnamed.npz", x=x, classes=y)
    return folder


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_sentence_and_status_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    command, named = MISTAKES[kind]
    monkeypatch.chdir(folder)
    capsys.readouterr()
    before = set(folder.rglob("*"))
    try:
        status = main([*shlex.split(command), "--json"])
    except SystemExit as ended:  # of argparse
        status = int(ended.code or 0)
    assert status == 2
    assert {path for path in set(folder.rglob("*")) - before if "__pycache__" not in path.parts} == set()
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["status"] == 2
    assert named in answer["error"]
    said = printed.err.splitlines()
    assert "usage:" not in printed.err
    errors = [line for line in said if "error:" in line]
    assert len(errors) == 1
    assert said[-1] == errors[0]
    assert named in errors[0]
