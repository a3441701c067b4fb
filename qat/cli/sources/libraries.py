"""Networks of other libraries, by name."""

from __future__ import annotations

import difflib
import importlib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from qat.cli.errors import UsageError, with_kind

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NO_WEIGHTS = "RANDOM WEIGHTS: sizes and speed mean something, accuracy does not."
RANDOM = f"{NO_WEIGHTS} Pretrained ones: --weights DEFAULT."


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs: pixels per side, mean and standard deviation per channel of images in 0..1."""

    size: int
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    def example(self) -> Tensor:
        """Noise of the shape of one input."""
        return torch.randn(1, len(self.mean), self.size, self.size)


def preprocessing_of(network: nn.Module, text: str) -> Preprocessing | None:
    """What a network of the user's own says in its attribute `preprocessing`, a mapping of `size`, `mean` and `std`.

    Raises:
        UsageError: it is not such a mapping.
    """
    given = getattr(network, "preprocessing", None)
    if not isinstance(given, Mapping):  # a layer of that name is not for us
        return None
    try:
        found = Preprocessing(**given)
        found = Preprocessing(int(found.size), tuple(map(float, found.mean)), tuple(map(float, found.std)))
    except (TypeError, ValueError):
        found = Preprocessing(0)
    if not (found.size > 0 and 0 < len(found.mean) == len(found.std) and all(x > 0 for x in found.std)):
        raise UsageError(
            f"{text} has preprocessing={dict(given)!r}, and it says how images become inputs: write "
            "{'size': pixels per side, 'mean': one number per channel, 'std': the same}, of images in 0..1."
        )
    return found


@dataclass
class Loaded:
    """A network, one sample of its inputs, how images become inputs, and where its weights come from."""

    network: nn.Module
    example: Any = None
    preprocessing: Preprocessing | None = None
    notes: list[str] = field(default_factory=list)


def options_of(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of `NAME,key=value,...`.

    >>> options_of("resnet18,num_classes=10")
    ('resnet18', {'num_classes': 10})
    """
    name, *pairs = text.split(",")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} in {text!r} is not an option: write NAME,key=value.")
        options[key.strip()] = yaml.safe_load(value)
    return name, options


def torchvision_network(text: str, weights: str | None) -> Loaded:
    """`torchvision:NAME`, of any kind; without weights it is random."""
    import torchvision.models

    name, options = options_of(text)
    _check_name("torchvision", name, torchvision.models.list_models())
    enum = torchvision.models.get_model_weights(name)
    if weights is not None and weights not in (*enum.__members__, "DEFAULT"):
        raise UsageError(
            f"--weights {weights} is not one of {name}'s: write {', '.join({'DEFAULT': 0, **enum.__members__})} or a file."
        )
    quiet = {"init_weights": True} if name in ("googlenet", "inception_v3") and weights is None else {}
    network = _made(f"torchvision:{name}", torchvision.models.get_model, name, given=options, weights=weights, **quiet)
    chosen = enum[weights] if weights not in (None, "DEFAULT") else enum.DEFAULT
    transforms = chosen.transforms()
    size = (getattr(transforms, "crop_size", None) or [224])[0]
    mean, std = (tuple(getattr(transforms, key, IMAGENET[i])) for i, key in enumerate(("mean", "std")))
    notes = [RANDOM] if weights is None else [f"torchvision's weights {chosen.name}"]
    return Loaded(network, torch.randn(1, 3, size, size), Preprocessing(size, mean, std), notes)


def timm_network(text: str, weights: str | None) -> Loaded:
    """`timm:NAME`; without weights it is random."""
    timm = _library("timm")
    name, options = options_of(text)
    _check_name("timm", name.partition(".")[0], timm.list_models())
    if weights not in (None, "DEFAULT"):
        raise UsageError(
            f"--weights {weights} is not known for timm: write DEFAULT or a file, or a tag in the name, NAME.TAG."
        )
    network = _made(f"timm:{text}", timm.create_model, name, given=options, pretrained=weights is not None)
    config = timm.data.resolve_model_data_config(network)
    channels, size, _ = config["input_size"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    notes = [RANDOM] if weights is None else [f"timm's weights of {name}"]
    return Loaded(network, torch.randn(1, channels, size, size), Preprocessing(size, mean, std), notes)


def huggingface_network(text: str, weights: str | None) -> Loaded:
    """`hf:FOLDER-OR-ID`: the class that its configuration names; code in a folder or a repository is never run."""
    transformers = _library("transformers")
    folder = Path(text).expanduser()
    local = folder.is_dir()
    config = _made(
        f"hf:{text}", transformers.AutoConfig.from_pretrained, str(folder) if local else text, trust_remote_code=False
    )
    architecture = (config.architectures or ["AutoModel"])[0]
    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise UsageError(
            f"hf:{text} is a {architecture}, which transformers does not have: code of its own is not run."
        )
    stored = not local or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    if stored:
        source = str(folder) if local else text
        network = _made(f"hf:{text}", cls.from_pretrained, source, trust_remote_code=False, dtype=torch.float32)
    else:
        network = cls(config) if cls is not transformers.AutoModel else cls.from_config(config)
    notes = [f"weights of {text}"] if stored else [f"{NO_WEIGHTS} {text} has a configuration and no weights."]
    return Loaded(network.float(), _huggingface_example(network, config), _huggingface_images(config), notes)


def _huggingface_example(network: Any, config: Any) -> dict[str, Any] | None:
    """One sample of images or of words, as keyword arguments; None for other inputs, such as sound."""
    main = getattr(network, "main_input_name", "input_ids")
    if main == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {main: torch.randn(1, getattr(config, "num_channels", 3), height, width)}
    if main != "input_ids":
        return None
    words = torch.randint(0, getattr(config, "vocab_size", 100), (1, 16))
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def _huggingface_images(config: Any) -> Preprocessing | None:
    size = getattr(config, "image_size", None)
    return Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) if isinstance(size, int) else None


def our_network(text: str, weights: str | None) -> Loaded:
    """`qat:lenet5` or `qat:resnet20` (and 8, 32, 56): a network of our own recipes, for their checkpoints."""
    from qat.models import LeNet5, ResNetCifar

    name, options = options_of(text)
    _check_name("qat", name, ["lenet5", *(f"resnet{depth}" for depth in (8, 20, 32, 56))])
    make, more = (LeNet5, {}) if name == "lenet5" else (ResNetCifar, {"depth": int(name.removeprefix("resnet"))})
    if weights is not None:
        raise UsageError(f"--weights {weights} is not known for qat:{name}: write a file of weights.")
    size, channels = (28, options.get("in_channels", 1)) if name == "lenet5" else (32, options.get("in_channels", 3))
    network = _made(f"qat:{name}", make, given=options, **more)
    return Loaded(network, torch.randn(1, channels, size, size), None, [NO_WEIGHTS])


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed: pip install {name}.") from error


def _check_name(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
        raise UsageError(f"{library} has no {name!r}: write for example {', '.join(close)}.")


def _made(text: str, make: Any, *args: Any, given: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """What `make` returns; whatever it raises is a sentence about `text`. given: options that the user wrote."""
    if twice := (given or {}).keys() & options.keys():
        raise UsageError(f"{min(twice)} of {text} is chosen by its name, or by --weights: leave {min(twice)}= out.")
    try:
        return make(*args, **options, **(given or {}))
    except Exception as error:  # of libraries, whose errors are of any kind
        if (reason := _of_connection(error)) is not None:
            instead = "its folder, hf:FOLDER" if text.startswith("hf:") else "a file of its weights, --weights FILE"
            raise UsageError(
                f"{text} cannot be downloaded ({with_kind(reason)}): connect this machine, or write {instead}."
            ) from error
        raise UsageError(f"{text} cannot be made: {with_kind(error)}") from error


def _of_connection(error: BaseException | None) -> BaseException | None:
    """The error of a connection among the causes of an error; None: it has another cause."""
    while error is not None and not isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        error = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        error = error if isinstance(error, BaseException) else None
    return error
