"""From the spelling of a model to a module, or to a file that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qat.cli.errors import UsageError, usage_errors
from qat.cli.sources import libraries
from qat.cli.sources.libraries import Loaded, Preprocessing
from qat.cli.sources.python_file import called, names_python
from qat.cli.sources.spellings import MODELS
from qat.export.pt2e.program import is_pt2e
from qat.export.targets import Target, target_of_file
from qat.messages import shown, type_of
from qat.reading.checkpoint import read_checkpoint
from qat.reading.malformed import malformed
from qat.reading.program_file import read_program
from qat.reading.tensor_file import read_tensors
from qat.torch_private import tree_leaves

STATE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")


@dataclass
class Model:
    """A model as the command line names it.

    Attributes:
        name: as it was given.
        network: the module; of a file, one that runs it.
        path: the file, if it is one that a runtime runs.
        target: what runs it.
        example: one sample of inputs, if they are known: a tensor, a tuple or a mapping.
        preprocessing: how images become its inputs, if that is known.
        notes: sentences for the report: where its weights come from.
    """

    name: str
    network: nn.Module
    path: Path | None = None
    target: Target | None = None
    example: Any = None
    preprocessing: Preprocessing | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_prepared(self) -> bool:
        """Whether it has quantizers already."""
        from qat.transform import is_prepared

        return is_prepared(self.network)


def load_model(
    text: str, weights: str | None = None, architecture: str | None = None, threads: int | None = None
) -> Model:
    """The model that `text` names.

    Args:
        text: see `spellings.MODELS`.
        weights: DEFAULT for a library's pretrained ones, a name of theirs, or a file; None: random, or those that it has.
        architecture: spelling of the network that a file of weights belongs to.
        threads: number of threads of a file's runtime.

    Raises:
        UsageError: there is no such model, or the weights are not its own.
    """
    path = Path(text).expanduser()
    with usage_errors():
        has_weights = path.suffix in STATE_SUFFIXES
        if architecture is not None and not has_weights:
            raise UsageError(f"--architecture is for a file of weights, which {text} is not: leave it out.")
        target = target_of_file(path)
        is_file = has_weights or target is not None or path.suffix == ".pt2"
        if weights is not None and (is_file or (names_python(text) and not _is_file(weights))):
            raise UsageError(f"--weights {weights} is not for {text}, which has weights of its own: leave it out.")
        if path.suffix == ".pt2" and not is_pt2e(path):
            return _program(text, path)
        if target is not None:
            return _file(text, path, target, threads)
        if has_weights:
            return _weights_file(text, path, architecture)
        return _with_weights(text, _built(text, weights), weights)


def _built(text: str, weights: str | None) -> Loaded:
    """A network of a library, or of the user's own file."""
    if names_python(text):
        network = called(text, "model")
        if isinstance(network, type) and issubclass(network, nn.Module):
            network = network()
        if not isinstance(network, nn.Module):
            raise UsageError(f"{text} gives {type_of(network)}: write a function that returns a torch.nn.Module.")
        names = ("example_inputs", "example_input_array")  # the second is Lightning's
        example = next((x for n in names if (x := getattr(network, n, None)) is not None), None)
        if example is not None and not any(isinstance(x, Tensor) for x in tree_leaves(example)):
            raise UsageError(
                f"{text} has example_inputs={shown(example)}: write what its forward takes, as torch.zeros(1, 3, 224, 224)."
            )
        how = libraries.preprocessing_of(network, text)
        if example is None and how is not None:
            example = how.example()
        return Loaded(network, example, how)
    prefix, colon, rest = text.partition(":")
    makers: dict[str, Callable[[str, str | None], Loaded]] = {
        "torchvision": libraries.torchvision_network,
        "timm": libraries.timm_network,
        "hf": libraries.huggingface_network,
        "qat": libraries.our_network,
    }
    if not colon or prefix not in makers:
        missing = f"{text} does not exist, and is" if "/" in text or "." in text else f"{text} is"
        raise UsageError(f"{missing} not a model: write {', '.join(MODELS)}.")
    return makers[prefix](rest, None if _is_file(weights) else weights)


def _is_file(weights: str | None) -> bool:
    return weights is not None and Path(weights).suffix in STATE_SUFFIXES


def _with_weights(text: str, loaded: Loaded, weights: str | None) -> Model:
    """The model of a library, with the weights of a file if one is given."""
    from qat.models.weights import load_weights

    notes = list(loaded.notes)
    if _is_file(weights):
        load_weights(loaded.network, str(weights))
        notes = [f"weights from {weights}"]
    return Model(
        text,
        loaded.network.eval(),
        example=loaded.example,
        preprocessing=loaded.preprocessing,
        notes=notes,
    )


def _check_file(path: Path, wanted: str) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {what}: write the path of {wanted}.")


def _file(text: str, path: Path, target: Target, threads: int | None) -> Model:
    from qat.export.onnx.file_inputs import example_of_file, fixed_batch

    _check_file(path, f"a file, or {', '.join(MODELS)}")
    with usage_errors():
        target.runtime.check()
    with usage_errors(), malformed(path, f"is not a file of {target.name}", "write it again"):
        network = target.network(path, threads)
    example = None
    if path.suffix == ".onnx":
        example, network.fixed_batch = example_of_file(path), fixed_batch(path)  # type: ignore[assignment]
    return Model(text, network.eval(), path, target, example)


def _program(text: str, path: Path) -> Model:
    """A program of torch.export."""
    from qat.capture.exported.program import module_of_program

    _check_file(path, "a file that torch.export.save wrote")
    with usage_errors():
        program = read_program(path)
    args, kwargs = program.example_inputs or ((), {})
    example = tuple(tree_leaves((args, kwargs)))
    return Model(text, module_of_program(program).eval(), example=example or None, notes=["weights of the program"])


def _weights_file(text: str, path: Path, architecture: str | None) -> Model:
    """A checkpoint of ours, or a file of weights for an architecture."""
    from qat.models.weights import load_weights
    from qat.transform.load_checkpoint import load_checkpoint

    _check_file(path, "a checkpoint")
    ours = path.suffix != ".safetensors" and _holds_policy(path)
    if architecture is None:
        if not ours:
            (read_tensors if path.suffix == ".safetensors" else read_checkpoint)(path)  # what is damaged says so
            raise UsageError(
                f"{path} holds weights and no network: add --architecture, one of {', '.join(MODELS[:4])}, such as "
                "--architecture torchvision:resnet18,num_classes=10."
            )
        network = load_checkpoint(path)
        return Model(
            text, _network_inside(network), notes=["trained by quantization-aware training, as its checkpoint says"]
        )
    built = _built(architecture, None)
    if ours:
        network = load_checkpoint(path, built.network)
    else:
        network = built.network
        load_weights(network, path)
    return Model(
        text, network.eval(), example=built.example, preprocessing=built.preprocessing, notes=[f"weights from {path}"]
    )


def _holds_policy(path: Path) -> bool:
    """Whether a checkpoint was written in quantization-aware training."""
    from qat.transform.policy_record import CHECKPOINT_KEY

    try:
        checkpoint = read_checkpoint(path)
    except (ValueError, OSError):  # load_weights says what is wrong with it
        return False
    return isinstance(checkpoint, dict) and CHECKPOINT_KEY in checkpoint


def _network_inside(module: nn.Module) -> nn.Module:
    """The prepared network of a LightningModule; any other module is it already."""
    from qat.transform.record import record_of

    return next((m for m in module.modules() if record_of(m) is not None), module)
