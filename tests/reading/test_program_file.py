"""Programs of torch.export: what torch's reader would execute is refused before it sees the file."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qat.reading.program_file import read_program

MARK = "executed"
"""A file that appears if something was executed."""
CODE = f"__import__('pathlib').Path('{MARK}').touch()"


class Shapes(nn.Module):
    """With free sizes, arithmetic on them, a buffer, a constant and an if."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x) * self.scale + torch.tensor([1.0, 2.0, 3.0])
        z = torch.cond(y.sum() > 0, lambda v: v * 2, lambda v: v - 1, (y,))
        return {"y": torch.cat([y, y + 1]).reshape(-1), "z": z + torch.zeros(2 * x.shape[0], 3)[::2]}


class Evil:
    def __reduce__(self) -> Any:
        return eval, (CODE,)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "good.pt2"
    with torch.no_grad():
        program = torch.export.export(
            Shapes(), (torch.ones(6, 4),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
        )
    torch.export.save(program, path)
    return path


def changed(good: Path, path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """The same archive with other members: change(members by name behind the root, the program)."""
    with zipfile.ZipFile(good) as archive:
        root = archive.namelist()[0].partition("/")[0]
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    program = json.loads(parts["models/model.json"])
    change(parts, program)
    if "models/model.json" in parts:
        parts["models/model.json"] = json.dumps(program).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"{root}/{name}", content)
    return path


def graph(program: dict[str, Any]) -> dict[str, Any]:
    return program["graph_module"]["graph"]


def set_size(program: dict[str, Any], text: str) -> None:
    graph(program)["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text


def rename_input(program: dict[str, Any], name: str) -> None:
    text = json.dumps(program).replace('"x"', json.dumps(name))
    program.clear()
    program.update(json.loads(text))


def use_pickle(parts: dict[str, bytes], kind: str, path: str, content: bytes) -> None:
    config = json.loads(parts[f"data/{kind}/model_{kind}_config.json"])
    entry = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}
    config["config"]["layer.bias" if kind == "weights" else "lifted_tensor_0"] = entry
    parts[f"data/{kind}/model_{kind}_config.json"] = json.dumps(config).encode()
    parts[f"data/{kind}/{path}"] = content


def set_structure(program: dict[str, Any], tree: Any) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, tree])


def saved(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


LEAF = {"type": None, "context": None, "children_spec": []}
IMPORTS = {"default_factory_module": "evil", "default_factory_name": "f", "dict_context": []}
ATTACKS: dict[str, Callable[[dict[str, bytes], dict[str, Any]], Any]] = {
    "expression": lambda _, p: set_size(p, f"eval({CODE!r})"),
    "expression with attributes": lambda _, p: set_size(p, f"Symbol('s0', positive=True).__class__.x({CODE})"),
    "expression that never ends": lambda _, p: set_size(p, "Pow(Integer(9), Pow(Integer(9), Integer(9999)))"),
    "expression of powers": lambda _, p: set_size(p, "9**9**9**9"),
    "weight": lambda parts, _: use_pickle(parts, "weights", "weight_9", saved(Evil())),
    "constant": lambda parts, _: use_pickle(parts, "constants", "tensor_9", saved(Evil())),
    "object": lambda parts, _: use_pickle(parts, "constants", "opaque_obj_9", pickle.dumps(Evil())),
    "inputs": lambda parts, _: parts.update({"data/sample_inputs/model.pt": saved(Evil())}),
    "older weights": lambda parts, _: parts.update({"data/weights/model.pt": saved(Evil())}),
    "library": lambda parts, _: parts.update({"data/aotinductor/model/evil.so": b"\x7fELF"}),
    "older format": lambda parts, _: (parts.clear(), parts.update({"serialized_state_dict.pt": saved(Evil())})),
    "name in source": lambda _, p: rename_input(p, f"x={CODE}"),
    "operation": lambda _, p: graph(p)["nodes"][0].update(target="torch.hub.load"),
    "operation on files": lambda _, p: graph(p)["nodes"][0].update(target="torch.ops.aten.from_file.default"),
    "operation of others": lambda _, p: graph(p)["nodes"][0].update(target="torch.ops.image.write_file.default"),
    "operator": lambda _, p: graph(p)["nodes"][0].update(target="_operator.methodcaller"),
    "structure": lambda _, p: set_structure(
        p, {"type": "collections.defaultdict", "context": json.dumps(IMPORTS), "children_spec": [LEAF]}
    ),
    "enumeration": lambda _, p: set_structure(
        p,
        {
            "type": "builtins.dict",
            "context": json.dumps([{"__enum__": True, "fqn": "evil:E", "name": "a"}]),
            "children_spec": [LEAF],
        },
    ),
    "large weight": lambda parts, _: parts.update(
        {
            "data/weights/model_weights_config.json": parts["data/weights/model_weights_config.json"].replace(
                b'"as_int": 4', b'"as_int": 40000000000'
            )
        }
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_would_be_executed_is_refused(
    name: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = changed(good, tmp_path / "bad.pt2", ATTACKS[name])
    with pytest.raises(ValueError, match=r"bad\.pt2") as refused:
        read_program(path)
    assert "\n" not in str(refused.value)
    assert not Path(MARK).exists()


def test_a_program_is_read_as_it_was_written(good: Path, tmp_path: Path) -> None:
    x = torch.randn(5, 4)
    for path in (good, changed(good, tmp_path / "same.pt2", lambda *_: None)):
        found, expected = read_program(path).module(check_guards=False)(x), torch.export.load(good).module()(x)
        assert all(torch.equal(found[key], expected[key]) for key in ("y", "z"))


def test_damage_is_a_sentence(good: Path, tmp_path: Path) -> None:
    content = bytearray(good.read_bytes())
    weight = torch.export.load(good).state_dict["layer.weight"].detach().numpy().tobytes()
    content[content.index(weight)] ^= 1
    (tmp_path / "bit.pt2").write_bytes(content)
    (tmp_path / "cut.pt2").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt2").write_text("no program")
    for name in ("bit", "cut", "text"):
        with pytest.raises(ValueError, match=rf"{name}\.pt2 is not a program of torch.export that can be read"):
            read_program(tmp_path / f"{name}.pt2")
