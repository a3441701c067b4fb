"""Packed weights with what transformers and the Hub expect beside them."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from qat.arguments import as_path
from qat.export.packed import load_quantized, save_quantized
from qat.export.packed.folder import FILES
from qat.files import write_atomically
from qat.hf.model_card import model_card
from qat.integer.integer_model import IntegerModel
from qat.report import read_results
from qat.torch_private import attention_implementation

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"


def save_pretrained(
    model: nn.Module, folder: str | Path, results: str | Path | None = None, processing_class: Any = None
) -> Path:
    """Write a prepared network into a folder: packed weights, its configuration, and a model card.

        qat.hf.save_pretrained(prepared, "folder")
        prepared = qat.hf.from_pretrained("folder")

    Args:
        model: what `qat.prepare` made of a network of transformers, or of any other; calibrated or trained.
        folder: is made, if it is missing.
        results: `results.json` of a run, or its folder, for the model card.
        processing_class: a tokenizer or processor that belongs to the network; it is saved, too.

    Returns:
        `folder`.

    Raises:
        ValueError: as `qat.save_quantized`; an integer model that does not know its policy.
    """
    folder = as_path(folder, "folder")
    if isinstance(model, IntegerModel) and model.policy is None:
        raise ValueError("the integer model does not know its policy: save the prepared network.")
    found = None if results is None else read_results(_results_file(as_path(results, "results")))
    save_quantized(model, folder)
    if isinstance(model, PreTrainedModel):
        _save_configuration(model, folder)
    if processing_class is not None:
        processing_class.save_pretrained(folder)
    write_atomically(folder / CARD, model_card(model, folder, found))
    return folder


def from_pretrained(
    source: str | Path,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    allow: Iterable[type] = (),
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """The prepared network in a folder or repository that `save_pretrained` or `push_to_hub` wrote, in evaluation mode.

    A network of transformers is built from its configuration, without its code from the repository (`trust_remote_code`).

    Args:
        source: a folder, or the name of a repository on the Hub, OWNER/NAME.
        model, allow: as for `qat.load_quantized`; for networks of other libraries.
        revision: branch, tag or commit on the Hub.
        token: for private repositories; None: the one that you are logged in with.

    Raises:
        ValueError: as `qat.load_quantized`; a class that transformers does not have.
        OSError: the repository cannot be read.
    """
    folder = as_path(source, "source")
    if not folder.is_dir():
        patterns = [*FILES, CONFIG, GENERATION]
        try:
            folder = Path(snapshot_download(str(source), revision=revision, token=token, allow_patterns=patterns))
        except HFValidationError:
            raise FileNotFoundError(
                f"{source} is neither a folder nor the name of a repository: write a folder that save_pretrained wrote, or "
                "OWNER/NAME."
            ) from None
        except OSError as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise OSError(
                f"{source} is no folder, and the Hub gave no repository of that name ({reason}): write a folder that "
                "save_pretrained wrote, or OWNER/NAME."
            ) from error
    if model is None and (folder / CONFIG).is_file():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        loaded: Any = load_quantized(folder, lambda: _built(config), allow)
        if (folder / GENERATION).is_file():
            loaded.generation_config = GenerationConfig.from_pretrained(folder)
        return loaded
    return load_quantized(folder, model, allow)


def push_to_hub(
    model: nn.Module,
    repository: str,
    results: str | Path | None = None,
    processing_class: Any = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload quantized weights",
) -> str:
    """`save_pretrained` into a repository on the Hub, which is made if it is missing.

    Args:
        model, results, processing_class: as for `save_pretrained`.
        repository: OWNER/NAME.
        private: whether a new repository is private; None: the default of your account.
        token: that may write; None: the one that you are logged in with.
        message: of the commit.

    Returns:
        The address of the commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, results, processing_class)
        api = HfApi(token=token)
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=FILES))


def configuration_of(model: PreTrainedModel) -> dict[str, Any]:
    """The content of config.json."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    if (attention := attention_implementation(model.config)) is not None:
        content["attn_implementation"] = attention  # the graph was captured with this one
    return content


def _save_configuration(model: PreTrainedModel, folder: Path) -> None:
    content = configuration_of(model)
    write_atomically(folder / CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _built(config: PreTrainedConfig) -> nn.Module:
    """The float network of this configuration, see `without_values`.

    Raises:
        ValueError: transformers does not have its class.
    """
    name = (config.architectures or [""])[0]
    cls = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise ValueError(
            f"transformers {transformers.__version__} has no network {name!r}: pass it, from_pretrained(folder, model)."
        )
    return without_values(config, cls)


def without_values(config: PreTrainedConfig, cls: type[nn.Module]) -> nn.Module:
    """A new network of class `cls`, on the meta device (without values) if its constructor reads none."""
    try:
        with torch.device("meta"):
            network: nn.Module = cls(config)
    except (RuntimeError, NotImplementedError):  # it reads values in its constructor
        network = cls(config)
    return network


def _results_file(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path
