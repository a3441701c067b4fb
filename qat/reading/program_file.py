"""Programs of torch.export (`.pt2`): torch's own reader executes much of what a file says, so the file is checked before.

Refused are pickled objects, compiled libraries, expressions that are more than arithmetic (sympy evaluates them as Python),
names that would become Python source, and operations that are not torch's own or touch files.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from qat.reading.archive import check_members
from qat.reading.bounds import MAX_DEPTH
from qat.reading.checkpoint import read_content
from qat.reading.malformed import malformed

MEMBER = re.compile(
    r"[^/]+/(models/model\.json|data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|"
    r"model_constants_config\.json)|sample_inputs/model\.pt)|extra/[^/]+|archive_format|archive_version|byteorder|\.data/\w+)"
)
"""What `torch.export.save` writes of a program without objects."""
NAME = re.compile(r"[\w.\-:/\[\] ]*")
SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, [a-z]+=(True|False))*\)")
ARITHMETIC = re.compile(r"[\w\s+\-*/(),<>=&|~%.]{0,4000}")
WORDS = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
FUNCTIONS = frozenset(
    """Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv CeilToInt FloorToInt TruncToInt
    TruncToFloat RoundToInt ModularIndexing Where IntTrueDiv FloatTrueDiv ToFloat Identity floor ceiling Abs Eq Ne Lt Le Gt Ge
    And Or Not Equality Unequality LessThan GreaterThan StrictLessThan StrictGreaterThan true false True False precision
    oo int_oo evaluate""".split()  # noqa: SIM905 (one word a line would be forty lines)
)
"""Words of expressions beside the names of sizes (s0, u1)."""
SIZE_NAME = re.compile(r"[a-z]{1,3}\d+")
OPERATION = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.\w+(\.\w+)?|math\.(ceil|floor|sqrt|trunc|pow|log2)|"
    r"torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)|"
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|index)|"
    r"torch\.sym_(float|int|max|min|ite|not|sqrt|sum)|torch\._sym_sqrt"
)
BITS = re.compile(r"\.__i?(and|or|xor|lshift|rshift)__")
"""Operations of aten that are spelled as Python's methods are."""
FILES = re.compile(r"torch\.ops\.aten\.(from_file|_print|save|load)\b")
"""Operations of aten that touch files."""
CONTAINERS = (
    *(None, "builtins.list", "builtins.tuple", "builtins.dict", "collections.OrderedDict"),
    *(f"torch.fx.immutable_collections.immutable_{kind}" for kind in ("list", "dict")),  # of a graph that returns such
)
MAX_ELEMENTS = 1 << 28
"""Elements that an operation with fixed sizes may make."""
MAKERS = re.compile(
    r"torch\.ops\.(aten|prims)\.(new_)?(zeros|ones|full|empty|empty_strided|rand|randn|randint|randperm|arange|range|eye|linspace|"
    r"logspace|tri[lu]_indices|iota|expand|repeat|broadcast_to|tile|repeat_interleave|upsample\w*|constant_pad_nd|pad)\b"
)


def read_program(path: str | Path) -> ExportedProgram:
    """The program in a file. Nothing in the file is executed.

    Guards are source code, too: make a module of it with `program.module(check_guards=False)`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, declares more than it has, or holds what would be executed.
    """
    path = Path(path)
    content = path.read_bytes()
    with malformed(path, "is not a program of torch.export that can be read", "save it again with torch.export.save"):
        _check(content)
        return torch.export.load(io.BytesIO(content))


def _check(content: bytes) -> None:
    file = io.BytesIO(content)
    names = check_members(file)
    with zipfile.ZipFile(file) as archive:
        for name in names:
            if not MEMBER.fullmatch(name):
                raise ValueError(f"it holds {name}, which may be code")
        parts = {name.partition("/")[2]: archive.read(name) for name in names}
    if len(parts) < len(names):
        raise ValueError("two members have one name")
    for kind in ("weights", "constants"):
        _check_tensors(json.loads(parts[f"data/{kind}/model_{kind}_config.json"]), parts, f"data/{kind}/")
    if inputs := parts["data/sample_inputs/model.pt"]:
        read_content(io.BytesIO(inputs))
    _check_values(json.loads(parts["models/model.json"]), "")


def _check_tensors(config: Any, parts: dict[str, bytes], folder: str) -> None:
    """Check that stored tensors are bytes, as many as their shapes say."""
    for name, entry in config["config"].items():
        _check_name(name)
        if entry["use_pickle"] or entry["tensor_meta"] is None or f"{folder}{entry['path_name']}" not in parts:
            raise ValueError(f"{name} is a pickled object, which could run code")
        sizes = [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
        stored = len(parts[f"{folder}{entry['path_name']}"])
        if min(sizes, default=0) < 0 or math.prod(sizes) > 2 * stored:  # the smallest types have two values in a byte
            raise ValueError(f"{name} of shape {sizes} has {stored:,} bytes")


def _check_values(value: Any, key: str, depth: int = 0) -> None:
    """Check whatever torch would evaluate, import, or write into source code."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} times")
    if isinstance(value, dict):
        if MAKERS.match(str(value.get("target"))):
            _check_size(value)
        for name, inner in value.items():
            if name not in ("metadata", "range_constraints", "torch_version", "as_string", "as_strings"):
                _check_values(inner, name, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            if key != "guards_code":
                _check_values(inner, key, depth + 1)
    elif isinstance(value, str):
        CHECKS.get(key, _check_name)(value)


def _check_name(text: str) -> None:
    if not NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a name")


def _check_operation(text: str) -> None:
    if not OPERATION.fullmatch(text) or FILES.match(text) or "__" in BITS.sub("", text):
        raise ValueError(f"{text[:80]!r} is not an operation that a file may name")


def _check_expression(text: str) -> None:
    rest = SYMBOL.sub("s0", text)
    words = WORDS.findall(rest)
    if not ARITHMETIC.fullmatch(rest) or not all(w in FUNCTIONS or SIZE_NAME.fullmatch(w) for w in words):
        raise ValueError(f"{text[:80]!r} is not an expression of sizes")
    if "**" in rest or "__" in rest or re.search(r"\.[A-Za-z_]|Pow\((Integer|\d)|\d{20}", rest):
        raise ValueError(f"{text[:80]!r} is not an expression of sizes")


def _check_structure(text: str) -> None:
    """Of nested inputs and outputs: plain containers alone, of which torch imports nothing."""
    if not text:
        return
    _, tree = json.loads(text)
    for part in _structures(tree):
        if part["type"] not in CONTAINERS or "__enum__" in str(part["context"]):
            raise ValueError(f"inputs or outputs inside {part['type']!r} are not read from a file")


def _structures(tree: Any) -> Iterator[Any]:
    yield tree
    for child in tree["children_spec"]:
        yield from _structures(child)


def _check_size(node: Any) -> None:
    """Check the fixed sizes that a node asks for."""
    for given in node.get("inputs", ()):
        numbers = next(iter(given["arg"].values()), None)
        found = [n for n in (numbers if isinstance(numbers, list) else [numbers]) if isinstance(n, int)]
        if given.get("name") not in ("end", "start") and math.prod(max(1, abs(n)) for n in found) > MAX_ELEMENTS:
            raise ValueError(f"{node['target']} asks for more than {MAX_ELEMENTS:,} elements")


CHECKS: dict[str, Callable[[str], None]] = {
    "target": _check_operation,
    "as_operator": _check_operation,
    "expr_str": _check_expression,
    "in_spec": _check_structure,
    "out_spec": _check_structure,
}
"""Key -> what its text must be; all other texts are names."""
