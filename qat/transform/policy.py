"""Where quantization goes: named, ordered rules, from Python, a preset's name or YAML."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from qat.estimators import Estimator
from qat.granularity import Granularity, PerChannel, PerGroup, PerTensor
from qat.grid import Grid
from qat.observers import Observer
from qat.quantizers import Quantizer
from qat.spec import QuantSpec

Part = str | Mapping[str, Any]
"""A class and its options: "LSQ", "my.module.MyQuantizer" or {"_target_": "Percentile", "percentile": 99.9}."""

KEYS = (
    *("preset", "rules", "residual_bits", "first_last_bits", "first_last_quantizer"),
    *("weight", "activation", "name"),
)
"""Of a policy's content."""
PRESET = r"w(?P<weight>\d+)(a(?P<activation>\d+)|(?P<dynamic>_dynamic))?"
DYNAMIC = {"bits": 8, "symmetric": False, "quantizer": "Dynamic"}
"""What a preset that ends in _dynamic does to the inputs of layers."""


@dataclass(frozen=True)
class TensorRule:
    """How one tensor is quantized.

    bits: width of the codes, 2..8. granularity: per_tensor, per_channel (output channels of a weight) or per_group (runs
    of `group_size` weights of one output channel). symmetric: zero is code 0. narrow: drop the lowest code. signed: None
    reads it from the graph (after ReLU: unsigned). quantizer, observer: a `Part`; a quantizer's option `estimator` is one, too.
    """

    bits: int
    granularity: str = "per_tensor"
    group_size: int | None = None
    symmetric: bool = True
    narrow: bool = False
    signed: bool | None = None
    quantizer: Part = "LSQ"
    observer: Part = "MSE"

    def __post_init__(self) -> None:
        Grid(self.bits)
        for name, possible in (
            ("symmetric", (True, False)),
            ("narrow", (True, False)),
            ("signed", (True, False, None)),
        ):
            if not any(getattr(self, name) is value for value in possible):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is neither true nor false: write {name}: false, without quotes."
                )
        if self.granularity not in ("per_tensor", "per_channel", "per_group"):
            raise ValueError(
                f"granularity={self.granularity!r} does not exist: write per_tensor, per_channel or per_group."
            )
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise ValueError(
                f"granularity={self.granularity} with group_size={self.group_size}: per_group needs a group_size such as 32, "
                "the others take none."
            )
        _quantizer(self.quantizer)
        _resolve(self.observer, "qat.observers", Observer)

    def spec(self, signed: bool = True) -> QuantSpec:
        """The QuantSpec; `signed` is what the graph says, used where this rule leaves it open. Affine grids are unsigned."""
        if not self.symmetric:
            return QuantSpec(Grid(self.bits, signed=False, narrow=self.narrow), self._granularity(), symmetric=False)
        signed = signed if self.signed is None else self.signed
        return QuantSpec(Grid(self.bits, signed, self.narrow and signed), self._granularity())

    def build(self, shape: tuple[int, ...] = (), signed: bool = True) -> Quantizer:
        """A new quantizer for a tensor of this shape (() for an activation)."""
        spec = self.spec(signed)
        make_observer, observer_options = _resolve(self.observer, "qat.observers", Observer)
        make_quantizer, quantizer_options = _quantizer(self.quantizer)
        with _of_the_right_type(make_observer, observer_options):
            observer = make_observer(spec, **observer_options)
        with _of_the_right_type(make_quantizer, quantizer_options):
            quantizer: Quantizer = make_quantizer(spec, shape, observer, **quantizer_options)
        return quantizer

    @property
    def is_dynamic(self) -> bool:
        """Whether the range is that of each tensor."""
        return self.quantizer_class.is_dynamic

    @property
    def quantizer_class(self) -> type[Quantizer]:
        """The class that `quantizer` names."""
        found: type[Quantizer] = _quantizer(self.quantizer)[0]
        return found

    def _granularity(self) -> Granularity:
        if self.group_size is not None:
            return PerGroup(self.group_size)
        return PerChannel() if self.granularity == "per_channel" else PerTensor()


@dataclass(frozen=True)
class Rule:
    """Which layers, and what their weight and their input become; None leaves the tensor in float.

    match: a glob on layer names ("layer1.*"), a type ("type:Linear"), "first" or "last" (of the quantizable layers, in the
    order in which they run).
    """

    match: str
    weight: TensorRule | None
    activation: TensorRule | None

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation.granularity != "per_tensor":
            raise ValueError(
                f"activation granularity={self.activation.granularity} of the rule for {self.match!r}: an activation has one "
                "scale; write per_tensor."
            )

    def matches(self, name: str, kind: str, position: int, count: int) -> bool:
        """Whether the layer `name` of type `kind`, number `position` of `count`, is meant."""
        if self.match in ("first", "last"):
            return position == (0 if self.match == "first" else count - 1)
        if self.match.startswith("type:"):
            return kind == self.match.removeprefix("type:")
        return fnmatchcase(name, self.match)


@dataclass(frozen=True)
class Policy:
    """Named, ordered rules: for each layer the last rule that matches decides, as a whole.

    residual_bits: width of tensors that flow through adds, concatenations and pools. A tensor that feeds such an operation
    and a layer of fewer bits is quantized to residual_bits and requantized in front of the layer. None: the bits of the
    first rule's activation.

    >>> policy = load_policy("w4a4")
    >>> list(policy.rules), policy.rules["all"].weight.bits, policy.rules["last"].weight.bits, policy.residual_bits
    (['all', 'first', 'last'], 4, 8, 8)
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    residual_bits: int | None = 8
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("a policy without rules quantizes nothing: name a preset such as w4a8, or write rules.")
        if self.residual_bits is not None:
            try:
                Grid(self.residual_bits)
            except ValueError as error:
                raise ValueError(f"residual_bits: {error}") from None

    def assign(self, layers: Sequence[tuple[str, str]]) -> dict[str, Rule]:
        """The rule of each layer. layers: (name, type name) in the order in which they run. Layers without one stay float.

        Raises:
            ValueError: a rule matches no layer.
        """
        assigned: dict[str, Rule] = {}
        for rule_name, rule in self.rules.items():
            hits = [n for i, (n, kind) in enumerate(layers) if rule.matches(n, kind, i, len(layers))]
            if not hits:
                names = ", ".join(n for n, _ in layers) or "none at all"
                raise ValueError(
                    f"rule {rule_name!r} with match={rule.match!r} matches no layer; quantizable layers: {names}."
                )
            assigned.update(dict.fromkeys(hits, rule))
        return assigned

    def stream(self) -> TensorRule | None:
        """How tensors between layers (adds, concatenations, pools) are quantized; None: in float, as beside dynamic inputs.

        By the quantizer of the first rule's activation, or by LSQ where that one is for inputs of layers alone.
        """
        activation = next(iter(self.rules.values())).activation
        if activation is not None and activation.is_dynamic:
            return None
        if activation is None:
            return None
        quantizer = "LSQ" if activation.quantizer_class.by_table else activation.quantizer
        return replace(activation, bits=self.residual_bits or activation.bits, quantizer=quantizer)

    def with_parts(self, quantizer: Part, observer: Part, weight_observer: Part | None = None) -> Policy:
        """The same policy with another quantizer and observer everywhere but in what is dynamic: how PTQ baselines are made."""

        def swap(tensor: TensorRule | None, observer: Part) -> TensorRule | None:
            return (
                tensor
                if tensor is None or tensor.is_dynamic
                else replace(tensor, quantizer=quantizer, observer=observer)
            )

        of_weights = observer if weight_observer is None else weight_observer
        rules = {
            n: replace(r, weight=swap(r.weight, of_weights), activation=swap(r.activation, observer))
            for n, r in self.rules.items()
        }
        return replace(self, rules=rules)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints and YAML; `load_policy` reads it back."""
        return dataclasses.asdict(self)


def load_policy(source: str | Path | Mapping[str, Any] | Policy, **overrides: Any) -> Policy:
    """A policy from a preset's name, the path of a YAML file, or its content.

    Presets: w<bits>a<bits> ("w4a8") for weights and activations, w<bits> ("w4") for weights alone, w<bits>_dynamic
    ("w8_dynamic") for weights and, with ranges of each batch, the 8-bit inputs of layers.

    Content: `preset` or `rules` (name -> {match, weight, activation}), `residual_bits` (8), `first_last_bits` (8; null:
    no rules for the first and last layer), `first_last_quantizer` (null: as the others), `weight` and `activation` (fields
    for every rule: quantizer, observer, granularity, ...), `name`. Rules beside a preset come after it; a null rule removes
    the preset's rule of that name.

    Raises:
        ValueError: unknown preset, key or field, or an impossible value. FileNotFoundError: no such YAML file.
    """
    if isinstance(source, Policy):
        return replace(source, **overrides)
    if isinstance(source, Mapping):
        content = dict(source)
    elif not isinstance(source, str | Path):
        raise ValueError(
            f"policy {source!r} is no policy: write a preset such as 'w8a8', a .yaml file, or a dict of rules."
        )
    elif re.fullmatch(PRESET, str(source)):
        content = {"preset": str(source)}
    elif Path(source).suffix in (".yaml", ".yml"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"policy file {source} does not exist.")
        content = yaml.safe_load(Path(source).read_text()) or {}
    else:
        raise ValueError(
            f"policy {str(source)!r} is neither a preset (such as w8a8, w4a8, w2a2, w4, w8_dynamic) nor a .yaml file."
        )
    return _from_content(content | overrides)


def _from_content(content: Mapping[str, Any]) -> Policy:
    _check_keys(content, KEYS, "a policy")
    for key in ("weight", "activation", "rules"):
        _check_mapping(content.get(key), key)
    defaults = {
        "weight": {"granularity": "per_channel", "narrow": True} | dict(content.get("weight") or {}),
        "activation": dict(content.get("activation") or {}),
    }
    rules: dict[str, Any] = {}
    preset = content.get("preset")
    if preset is not None:
        found = re.fullmatch(PRESET, str(preset))
        for kind in ("weight", "activation"):
            if "bits" in (content.get(kind) or {}):
                raise ValueError(
                    f"{kind}.bits={content[kind]['bits']} beside preset={preset}, which says them: write another preset."
                )
        if not found:
            raise ValueError(
                f"preset={preset!r} does not exist: write w<bits>a<bits>, for example w4a8, w4 (weights alone) or w8_dynamic."
            )
        inputs = {"bits": int(found["activation"])} if found["activation"] else DYNAMIC if found["dynamic"] else None
        rules["all"] = {"match": "*", "weight": {"bits": int(found["weight"])}, "activation": inputs}
        bits, quantizer = content.get("first_last_bits", 8), content.get("first_last_quantizer")
        if bits is not None:
            ends = {"bits": bits} if quantizer is None else {"bits": bits, "quantizer": quantizer}
            for end in ("first", "last"):
                rules[end] = {"match": end, "weight": ends, "activation": ends if found["activation"] else inputs}
    for name, rule in (content.get("rules") or {}).items():
        rules[name] = rule
    return Policy(
        rules={n: _rule(n, r, defaults) for n, r in rules.items() if r is not None},
        residual_bits=content.get("residual_bits", 8),
        name=str(content.get("name") or preset or "custom"),
    )


def _rule(name: str, content: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> Rule:
    _check_mapping(content, f"rule {name!r}")
    _check_keys(content, ("match", "weight", "activation"), f"rule {name!r}")
    if "match" not in content:
        raise ValueError(f"rule {name!r} does not say which layers: add match, for example match: 'layer1.*'.")
    return Rule(str(content["match"]), *(_tensor_rule(name, k, content.get(k), defaults[k]) for k in defaults))


def _tensor_rule(
    rule: str, kind: str, fields: Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> TensorRule | None:
    if fields is None:
        return None
    _check_mapping(fields, f"{kind} of rule {rule!r}")
    names = [f.name for f in dataclasses.fields(TensorRule)]
    _check_keys(fields, names, f"{kind} of rule {rule!r}")
    merged = {**defaults, **fields}
    _check_keys(merged, names, kind)
    if "bits" not in merged:
        raise ValueError(f"{kind} of rule {rule!r} has no bits: write for example bits: 8.")
    try:
        return TensorRule(**merged)
    except ValueError as error:
        raise ValueError(f"{kind} of rule {rule!r}: {error}") from None


def _check_mapping(content: object, where: str) -> None:
    if content is not None and not isinstance(content, Mapping):
        example = "{mine: {match: 'layer1.*', weight: {bits: 4}}}" if where == "rules" else "{bits: 8}, or {}"
        raise ValueError(f"{where}={content!r} has no keys: write for example {example}.")


@contextmanager
def _of_the_right_type(cls: type, options: Mapping[str, Any]) -> Iterator[None]:
    """Options that a class cannot work with are the person's, not the program's, mistake."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{cls.__name__} cannot be made with {dict(options)}: {error}.") from error


def _check_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}."
            raise ValueError(f"{key!r} is no key of {where}; {hint}")


def _quantizer(part: Part) -> tuple[Any, dict[str, Any]]:
    """The quantizer's class and its options, among them a new estimator, where one is named."""
    make, options = _resolve(part, "qat.quantizers", Quantizer)
    if "estimator" in options:
        make_estimator, estimator_options = _resolve(options["estimator"], "qat.estimators", Estimator)
        with _of_the_right_type(make_estimator, estimator_options):
            options["estimator"] = make_estimator(**estimator_options)
    return make, options


def _resolve(part: Part, package: str, base: type) -> tuple[Any, dict[str, Any]]:
    """The class that a part names, and its options. Only subclasses of `base` are accepted."""
    if not isinstance(part, str | Mapping):
        raise ValueError(
            f"{part!r} is no {base.__name__.lower()}: write the name of a class, or {{_target_: NAME, ...}}."
        )
    options = {} if isinstance(part, str) else dict(part)
    name = part if isinstance(part, str) else str(options.pop("_target_", ""))
    if not name:
        raise ValueError(f"{part!r} names no {base.__name__.lower()}: add _target_, the name of its class.")
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or package), attribute, None)
    except ImportError:
        found = None
    if not (isinstance(found, type) and issubclass(found, base)):
        there = importlib.import_module(package)
        parts = {n: getattr(there, n) for n in there.__all__}
        known = ", ".join(n for n, p in parts.items() if isinstance(p, type) and issubclass(p, base) and p is not base)
        raise ValueError(
            f"{name!r} is no {base.__name__.lower()}: write one of {known}, or the import path of your own class."
        )
    _check_options(found, options)
    return found, options


def _check_options(cls: type, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that the class does not take."""
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    given_by_policy = ("spec", "shape", "observer")
    known = [name for name in parameters if name not in given_by_policy]
    for option in options:
        if option not in known:
            raise ValueError(f"{option!r} is no option of {cls.__name__}; it has {', '.join(known) or 'none'}.")
