"""Private members of other libraries: each one that qat uses exists, and few files use them."""

import ast
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
import torch.ao.quantization.fx._decomposed
import torch.utils._python_dispatch
import torch.utils._pytree
from lightning.fabric.utilities import cloud_io
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loops import fetchers, loop, utilities
from lightning.pytorch.strategies import DDPStrategy, launchers
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.nn.modules import batchnorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.onnx._internal.exporter import _registration
from torch.utils.data import DataLoader
from torchmetrics import SumMetric

import qat

ROOT = Path(qat.__file__).parent
TRAINING = "training/lightning/private_api.py"
BELOW_TRAINING = "torch_private.py"
OPTUNA = "experiment/sweep/optuna_private.py"
TRANSFORMERS = "hf/private_api.py"
HYDRA = "experiment/options.py"
ONLY_THERE = {TRAINING: 8, BELOW_TRAINING: 8, OPTUNA: 1, TRANSFORMERS: 1, HYDRA: 1}
"""File -> how many uses of private members are there, at least."""


class Member(NamedTuple):
    """A private member. file: in qat/; owner: returns the object that should have it; purpose: what the file uses it to do."""

    file: str
    library: str
    owner_name: str
    name: str
    owner: Callable[[], Any]
    purpose: str


def trainer() -> L.Trainer:
    return L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")


def hydra_utilities() -> Any:
    return importlib.import_module("hydra._internal.utils")


def epoch_loop() -> Any:
    return trainer().fit_loop.epoch_loop


def fused_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, fused=True)


def optuna_trial() -> Any:
    return pytest.importorskip("optuna").create_study().ask()


def read_by_transformers() -> SimpleNamespace:
    """An object with the members that transformers looks for in a network when it writes a checkpoint."""
    source = Path(pytest.importorskip("transformers.core_model_loading").__file__).read_text()
    return SimpleNamespace(**dict.fromkeys(re.findall(r'getattr\(model, "(\w+)"', source)))


def ddp_module() -> nn.Module:
    module = nn.Linear(1, 1)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ["bias"])
    return module


def running_loader() -> CombinedLoader:
    loader = CombinedLoader([DataLoader(range(2))])
    iter(loader)
    return loader


def pruning_hook() -> Any:
    layer = prune.identity(nn.Linear(1, 1), "weight")
    return next(iter(layer._forward_pre_hooks.values()))


def logged_metric() -> Any:
    return result._ResultMetric(result._Metadata("training_step", "loss"), is_tensor=True)


def constant() -> Any:
    return torch.compiler.assume_constant_result(lambda: None)


def exported_program() -> Any:
    return torch.export.export(nn.Identity(), (torch.ones(1),))


def quantization() -> Any:
    return torch.ao.quantization.fx


def of_lightning(owner_name: str, name: str, owner: Callable[[], Any], purpose: str) -> Member:
    return Member(TRAINING, "lightning", owner_name, name, owner, purpose)


def configuration() -> Any:
    return pytest.importorskip("transformers").PretrainedConfig()


def of_torch(owner_name: str, name: str, owner: Callable[[], Any], purpose: str, file: str = TRAINING) -> Member:
    return Member(file, "torch", owner_name, name, owner, purpose)


MEMBERS = [
    of_lightning("loops.utilities", "_is_max_limit_reached", lambda: utilities, "see that no step is left"),
    of_lightning("_TrainingEpochLoop", "_num_ready_batches_reached", epoch_loop, "see that an epoch has no batch left"),
    of_lightning("_TrainingEpochLoop", "_should_accumulate", epoch_loop, "see that gradients accumulate"),
    of_lightning("_TrainingEpochLoop", "_should_check_val_fx", epoch_loop, "see that a validation is due"),
    of_lightning("_TrainingEpochLoop", "_skip_next_val", epoch_loop, "end a batch without a validation"),
    of_lightning("_TrainingEpochLoop", "_restart_stage", epoch_loop, "forget where a checkpoint was written"),
    of_lightning("_TrainingEpochLoop", "_batches_that_stepped", epoch_loop, "correct the count of steps"),
    of_lightning("_TrainingEpochLoop", "_results", epoch_loop, "keep the means of an epoch"),
    of_lightning("_EvaluationLoop", "_results", lambda: epoch_loop().val_loop, "leave the metrics of validation alone"),
    of_lightning("_EvaluationLoop", "_has_run", lambda: epoch_loop().val_loop, "mark a validation as done"),
    of_lightning("_FitLoop", "_data_fetcher", lambda: trainer().fit_loop, "end a batch"),
    of_lightning("_FitLoop", "_restarting", lambda: trainer().fit_loop, "end a restart"),
    of_lightning("_FitLoop", "_combined_loader", lambda: trainer().fit_loop, "find the train dataloaders"),
    of_lightning("_FitLoop", "_data_source", lambda: trainer().fit_loop, "wrap the train dataloaders"),
    of_lightning("_FitLoop", "_last_train_dl_reload_epoch", lambda: trainer().fit_loop, "reload dataloaders on time"),
    of_lightning("loops.fetchers", "_DataFetcher", lambda: fetchers, "draw ahead of data of unknown length"),
    of_lightning(
        "_PrefetchDataFetcher", "batches", fetchers._PrefetchDataFetcher, "draw ahead of data of unknown length"
    ),
    of_lightning("Trainer", "_val_check_time_interval", trainer, "see that it validates by the clock"),
    of_lightning("loops.loop", "_Loop", lambda: loop, "end a restart of all loops"),
    of_lightning("Trainer", "_checkpoint_connector", trainer, "check what checkpoints restore"),
    of_lightning(
        "_CheckpointConnector",
        "_restore_modules_and_callbacks",
        lambda: trainer()._checkpoint_connector,
        "say which checkpoint does not fit",
    ),
    of_lightning("Trainer", "_logger_connector", trainer, "restore logged values"),
    of_lightning("_LoggerConnector", "_callback_metrics", lambda: trainer()._logger_connector, "restore last values"),
    of_lightning("_LoggerConnector", "_first_loop_iter", lambda: trainer()._logger_connector, "go on with means"),
    of_lightning("logger_connector.result", "_ResultMetric", lambda: result, "restore a mean"),
    of_lightning("logger_connector.result", "_Metadata", lambda: result, "restore a mean"),
    of_lightning("logger_connector.result", "_Sync", lambda: result, "restore a mean"),
    of_lightning("_Sync", "_should", lambda: result._Sync(), "restore a mean"),
    of_lightning("CombinedLoader", "_mode", running_loader, "copy a CombinedLoader"),
    of_lightning("CombinedLoader", "_iterator", running_loader, "skip batches without loading them"),
    of_lightning("CombinedLoader", "_load_state_dicts", running_loader, "restore stateful dataloaders"),
    of_lightning("LightningModule", "_on_before_batch_transfer", L.LightningModule, "call transfer hooks"),
    of_lightning("LightningModule", "_apply_batch_transfer_handler", L.LightningModule, "call transfer hooks"),
    of_lightning("LightningModule", "_metric_attributes", L.LightningModule, "copy a LightningModule"),
    of_lightning("StochasticWeightAveraging", "_swa_lrs", lambda: StochasticWeightAveraging(0.1), "scale its rates"),
    of_lightning("DDPStrategy", "_ddp_kwargs", DDPStrategy, "see whether DDP looks for unused parameters"),
    of_lightning("strategies.launchers", "_MultiProcessingLauncher", lambda: launchers, "refuse ddp_spawn"),
    of_lightning("cloud_io", "_is_local_file_protocol", lambda: cloud_io, "write checkpoints atomically"),
    Member(TRAINING, "torchmetrics", "Metric", "_update_count", SumMetric, "restore a metric"),
    Member(TRAINING, "torchmetrics", "Metric", "_computed", SumMetric, "restore a metric"),
    of_torch("Module", "_compiled_call_impl", nn.Identity, "switch compiled code off"),
    of_torch("Module", "_modules", nn.Identity, "copy a LightningModule"),
    of_torch("Optimizer.step", "hooked", lambda: type(fused_optimizer()).step, "run the hooks of a step once"),
    of_torch("Optimizer", "_step_supports_amp_scaling", fused_optimizer, "see who unscales gradients"),
    of_torch("torch", "_foreach_copy_", lambda: torch, "copy integers into averages"),
    of_torch(
        "DistributedDataParallel",
        "_set_params_and_buffers_to_ignore_for_model",
        lambda: DistributedDataParallel,
        "keep the counts of oscillations out of DDP",
    ),
    of_torch("a module in DDP", "_ddp_params_and_buffers_to_ignore", ddp_module, "keep what DDP ignores already"),
    of_torch("an iterator of DataLoader", "_sampler_iter", lambda: iter(DataLoader(range(2))), "skip batches"),
    of_torch("nn.modules.batchnorm", "_BatchNorm", lambda: batchnorm, "recognise BatchNorm", BELOW_TRAINING),
    *(
        of_torch("utils._pytree", name, lambda: torch.utils._pytree, "walk through nested values", BELOW_TRAINING)
        for name in (
            "GetAttrKey",
            "MappingKey",
            "SUPPORTED_NODES",
            "SequenceKey",
            "TreeSpec",
            "register_pytree_node",
            "tree_flatten",
            "tree_flatten_with_path",
            "tree_leaves",
            "tree_map",
            "tree_map_only",
            "tree_unflatten",
        )
    ),
    *(
        of_torch("Module", name, nn.Identity, "hand over what a module holds", BELOW_TRAINING)
        for name in ("_modules", "_parameters", "_buffers")
    ),
    of_torch("Module", "_forward_pre_hooks", nn.Identity, "find weights that hooks compute", BELOW_TRAINING),
    of_torch("Module", "_forward_hooks", nn.Identity, "trace hooks", BELOW_TRAINING),
    of_torch("Module", "_forward_pre_hooks_with_kwargs", nn.Identity, "trace hooks", BELOW_TRAINING),
    of_torch("Module", "_forward_hooks_with_kwargs", nn.Identity, "trace hooks", BELOW_TRAINING),
    of_torch("a pruning hook", "_tensor_name", pruning_hook, "find weights that hooks compute", BELOW_TRAINING),
    of_torch("utils", "_python_dispatch", lambda: torch.utils, "count multiply-adds", BELOW_TRAINING),
    of_torch("torch", "_assert", lambda: torch, "leave assertions out of graphs", BELOW_TRAINING),
    of_torch("torch", "_utils", lambda: torch, "read tensors beside objects", BELOW_TRAINING),
    *(
        of_torch("_utils", name, lambda: torch._utils, "read tensors beside objects", BELOW_TRAINING)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
    ),
    of_torch("torch", "_ops", lambda: torch, "name operations", BELOW_TRAINING),
    of_torch("ExportedProgram", "_guards_code", exported_program, "check the sizes of inputs", BELOW_TRAINING),
    of_torch("LSTM", "_flat_weights_names", lambda: nn.LSTM(1, 1), "let it read other weights", BELOW_TRAINING),
    of_torch("an operation", "_schema", lambda: torch.ops.aten.relu.default, "name its arguments", BELOW_TRAINING),
    of_torch("torch", "_C", lambda: torch, "name the arguments of operations", BELOW_TRAINING),
    of_torch("_C", "_jit_get_schemas_for_operator", lambda: torch._C, "name arguments", BELOW_TRAINING),
    Member(
        BELOW_TRAINING, "transformers", "PretrainedConfig", "_attn_implementation", configuration, "keep the attention"
    ),
    of_torch(
        "a state dict", "_metadata", lambda: nn.Identity().state_dict(), "note the bits of values", BELOW_TRAINING
    ),
    of_torch("Module", "_non_persistent_buffers_set", nn.Identity, "save a network's structure", BELOW_TRAINING),
    of_torch("Tensor", "_version", lambda: torch.zeros(1), "see that a tensor was changed in place", BELOW_TRAINING),
    of_torch("a constant function", "_dynamo_marked_constant", constant, "mark it without a compiler", BELOW_TRAINING),
    of_torch(
        "_registration", "ONNXRegistry", lambda: _registration, "read torch.onnx's functions once", BELOW_TRAINING
    ),
    of_torch(
        "ONNXRegistry", "from_torchlib", lambda: _registration.ONNXRegistry, "read its functions once", BELOW_TRAINING
    ),
    of_torch("ao.quantization.fx", "_decomposed", quantization, "name the operations of PT2E", BELOW_TRAINING),
    of_torch("Conv1d", "_conv_forward", lambda: nn.Conv1d(1, 1, 1), "convolve with another weight", "nn/layers.py"),
    of_torch("Conv2d", "_conv_forward", lambda: nn.Conv2d(1, 1, 1), "convolve with another weight", "nn/layers.py"),
    of_torch("Module", "_apply", nn.Identity, "keep quantizers in float32", "quantizers/base.py"),
    Member(OPTUNA, "optuna", "Trial", "_trial_id", optuna_trial, "go on with a trial that was killed"),
    Member(
        TRANSFORMERS,
        "transformers",
        "PreTrainedModel",
        "_weight_conversions",
        read_by_transformers,
        "keep names in checkpoints",
    ),
    Member(
        HYDRA, "hydra-core", "hydra._internal.utils", "get_args_parser", hydra_utilities, "know the options of train"
    ),
    of_torch("Module", "_load_from_state_dict", nn.Identity, "load older state_dicts", "quantizers/base.py"),
]


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # of Lightning with recent versions of torch
@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: f"{m.owner_name}.{m.name}")
def test_the_installed_version_has_the_member(member: Member) -> None:
    assert hasattr(member.owner(), member.name), (
        f"{member.library} {importlib.metadata.version(member.library)} has no {member.owner_name}.{member.name}, "
        f"which qat/{member.file} uses to {member.purpose}"
    )


# Nobody else uses private members -------------------------------------------------------------------------------------

PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit"}
"""Of a NamedTuple, and os._exit: documented."""


def is_private(name: str) -> bool:
    return re.match(r"_[A-Za-z]", name) is not None


def names_defined_in(tree: ast.Module) -> set[str]:
    """Functions, classes, variables and attributes of self."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def foreign_private_names(source: str) -> Iterator[str]:
    """Private names of other libraries that a file imports or reads from an object that is not its own.

    `self._x`, `cls._x` and `super()._x` are left out: a subclass may use what its base class has for it.
    """
    tree = ast.parse(source)
    own = names_defined_in(tree) | PUBLIC
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("qat", "__future__")):
            private_module = any(is_private(part) for part in (node.module or "").split("."))
            yield from (f"{node.module}.{a.name}" for a in node.names if private_module or is_private(a.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if ast.unparse(node.value) not in ("self", "cls", "super()"):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(name.value) and name.value not in own:
                yield ast.unparse(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            name = node.slice.value
            if ast.unparse(node.value).startswith("vars(") and is_private(name):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(ROOT.rglob("*.py")) if str(path.relative_to(ROOT)) not in ONLY_THERE],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_other_file_uses_private_members(path: Path) -> None:
    file = TRAINING if path.is_relative_to(ROOT / "training") else BELOW_TRAINING
    assert list(foreign_private_names(path.read_text())) == [], f"give it a public name in qat/{file}"


@pytest.mark.parametrize("file", ONLY_THERE)
def test_every_private_member_is_in_the_table(file: str) -> None:
    used = list(foreign_private_names((ROOT / file).read_text()))
    listed = {member.name for member in MEMBERS if member.file == file}
    assert [expression for expression in used if not listed & set(re.findall(r"\w+", expression))] == []
    assert len(used) >= ONLY_THERE[file]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("trainer.fit_loop._results", ["trainer.fit_loop._results"]),
        ("from lightning.pytorch.loops.loop import _Loop", ["lightning.pytorch.loops.loop._Loop"]),
        ("from torch.utils._pytree import tree_map", ["torch.utils._pytree.tree_map"]),
        ("getattr(module, '_ddp', None)", ["getattr(module, '_ddp', None)"]),
        ("vars(module)['_modules']", ["vars(module)['_modules']"]),
        ("self._x = 1\nother._x", []),
        ("super()._apply(f)", []),
        ("pair._replace(a=1)", []),
        ("from qat.ptq.passes import _name", []),
    ],
)
def test_this_test_finds_private_names(source: str, expected: list[str]) -> None:
    assert list(foreign_private_names(source)) == expected
