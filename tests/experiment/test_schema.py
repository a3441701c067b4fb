"""The schema refuses what nobody means, in one sentence that names the key, and accepts what recipes and documents write."""

import importlib.util
import inspect
import random
import re
from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from qat.experiment.configuration import CONFIG_NAME, register_recipes
from qat.experiment.early_check import EarlyCheck
from qat.experiment.errors import composition_errors
from qat.experiment.schema import check_configuration
from qat.experiment.schema.trainer import Trainer
from qat.experiment.schema.words import all_keys, at, keys_of, values_of
from tests.experiment.configurations import CONFIGS, composed
from tests.paths import DOCS
from tests.training.user_modules import LIGHTNING

pytestmark = LIGHTNING

NUMBERS = ("nan", "inf", "-inf", "-7", "1e30", "'\"3\"'", "maybe", "[1]", "{a: 1}", "true")
"""None of these is a sensible value of any key that holds a number."""
SWITCHES = ("maybe", "2", "'\"true\"'", "[true]", "0.5")
WORDS = ("5", "[a]", "true")
BASES = (
    ("recipe=digits_w4a8",),
    ("recipe=digits_w4a8", "oscillation=dampen", "ptq=full", "observer=percentile", "quantizer=dsq", "logger=wandb"),
)
"""Overrides whose configurations together have most keys."""
NAMES_ARE_FREE = ("callbacks", "policy.rules", "ptq.ladder", "ptq.outside")
WORD_OR_NUMBER = (".version", ".devices", ".accelerator", ".preset", ".filename", ".name", ".project")
"""Ends of keys for which some of WORDS are refused elsewhere or sensible."""


def leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


def attacks() -> list[tuple[str, ...]]:
    """Overrides that must be refused: what their keys hold is read from composed configurations and from the schema."""
    made: dict[tuple[str, ...], None] = {}
    for base in BASES:
        content: Any = OmegaConf.to_container(composed(*base), resolve=True)
        own = {key for key, _ in leaves(OmegaConf.to_container(composed(*base), resolve=False))}
        for key, value in leaves(content):
            if " " in key:
                continue
            if isinstance(value, dict):
                if key not in NAMES_ARE_FREE and key in own:  # a key below ${...} would replace all of it
                    made[(*base, f"+{key}.nonsense=1")] = None
                continue
            for nasty in kinds_of(value, key):
                made[(*base, f"{key}={nasty}")] = None
    present = {key for key, _ in leaves(OmegaConf.to_container(composed()))}
    for key in all_keys():
        if key.startswith("trainer.") and key not in present and "number" in says(key):
            made.update({(f"+{key}={nasty}",): None for nasty in NUMBERS})
    made.update({(f"~{group}",): None for group in ("data", "model", "optim", "trainer", "logger", "policy", "ptq")})
    return list(made)


def kinds_of(value: Any, key: str) -> tuple[str, ...]:
    if key.endswith("_target_") or key == "resume":
        return ("5", "[a]", "no.such.Thing") if key != "resume" else ("[a]",)
    if isinstance(value, bool):
        return SWITCHES
    if isinstance(value, int | float):
        return NUMBERS if key != "trainer.devices" else tuple(n for n in NUMBERS if n != "[1]")  # the second GPU
    return WORDS if isinstance(value, str) and not key.endswith(WORD_OR_NUMBER) else ()


def says(key: str) -> str:
    """What the schema says of a key of the Trainer."""
    return values_of(*at(Trainer, (), key.partition(".")[2], {}))


def refusal(overrides: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What `qat train OVERRIDES` says before it does anything; None if it begins."""
    register_recipes()
    GlobalHydra.instance().clear()
    plain = [re.sub(r"='(.*)'$", r"=\1", override) for override in overrides]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"), composition_errors(overrides):
            EarlyCheck().on_run_start(compose(CONFIG_NAME, plain, return_hydra_config=True))
    except SystemExit as ended:
        return capsys.readouterr().err if ended.code == 2 else None
    return None


def check_refused(chosen: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for overrides in chosen:
        said = refusal(overrides, capsys)
        name = overrides[-1].lstrip("+~").partition("=")[0].rpartition(".")[2]
        if said is None or said.count("\n") != 1 or not said.startswith("error: ") or name not in said:
            wrong.append((overrides, said))
    assert not wrong, "\n".join(map(str, wrong))


def test_some_nonsense_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(random.Random(0).sample(attacks(), 8), capsys)


@pytest.mark.slow
def test_much_nonsense_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(random.Random(1).sample(attacks(), 400), capsys)


REFUSED = {
    "+trainer.limit_val_batches=0": "trainer.limit_val_batches=0 is not possible: write a number of batches",
    "+trainer.fast_dev_run=true": "write false; for a quick run trainer.max_steps=1 float.max_steps=1",
    "trainer.strategy=[ddp]": "trainer.strategy=['ddp'] is not possible: write auto, ddp, or another strategy",
    "+trainer.limit_test_batches=3": "write null; data.limit_test limits the test images",
    "trainer.max_epochs=0": "trainer.max_epochs=0 is not possible",
    "policy.rules={a: {match: x, weight: {bits: 33}}}": "policy.rules.a.weight.bits=33 is not possible: write a",
    "policy.rules={a: {match: x, weigth: {bits: 3}}}": "unknown key policy.rules.a.weigth; did you mean policy.rules.a.weight?",
    "export.path=model": "export.path='model' is not possible: write the name of a file",
    "export.path=nowhere/model.onnx": "export.path='nowhere/model.onnx' is not possible",
    "ptq.ladder={}": "ptq.ladder={} deletes nothing, because keys are added to those that are there: write ptq=none",
    "+ptq.ladder.mine=[]": "ptq.ladder.mine=[] is not possible: write a list of passes",
    "progressive={0.0: 8, 0: 2}": "progressive={0.0: 8, 0: 2} has the key 0 twice, and the last alone would count",
    "policy.rules={a: {match: linear, match: conv1, weight: {bits: 8}}}": "has the key match twice",
    "progressive={0.5: 8, 0.0: 2}": "or by rising shares of the run from 0.0 on, {0.0: 32, 0.3: 4, 0.6: 2}, or null.",
    "pruning.end=0.0": "pruning.begin=0.0 is not before pruning.end=0.0: write shares that rise.",
    "optim.lr=interval(0,1)": "add -m for a sweep over them, or write one.",
    "=5": "=5 has no key: write key=value.",
    "~seed": "~seed deletes what every run needs: leave it out, or write seed=VALUE.",
    "+policy.weight.channel_axis=0": "unknown key policy.weight.channel_axis; policy.weight has the keys granularity",
    "recipe=[digits_w2a2,digits_w8a8]": "recipe=[digits_w2a2,digits_w8a8] mixes recipes, and a run has one",
    "~optim.lr": "~optim.lr deletes what other keys refer to: leave it out, or write optim.lr=VALUE.",
    "freeze=none": "freeze='none' is not possible: write keys, {batch_norm: ..., scales: ...}.",
    "+oscillation.threshold=0.1": "oscillation.threshold is not possible with oscillation=none: choose another with",
    "optim.momentum=5": "unknown key optim.momentum; did you mean optim.optimizer.momentum?",
    "policy.exclude=[conv1]": "policy has the keys ",
    "policy.weight.bits=4": "unknown key policy.weight.bits: write policy.preset=w4a8, or the bits of a rule",
    "+callbacks.x={_target_: lightning.pytorch.callbacks.Timer, duration: -1}": "callbacks.x cannot be built (",
    "sweep=optuna": "sweep=optuna says how several runs are made, and this is one: write -m before it",
    "hydra.run.dir=": "hydra.run.dir is empty: write the name of a new folder",
    "~ptq": "~ptq deletes what every run needs: write ptq=none",
    "~callbacks.qat": "callbacks.qat is missing, and nothing would be quantized",
    "receipe=digits_w8a8": "unknown key receipe; did you mean recipe?",
    "lr=0.1": "unknown key lr; did you mean optim.lr?",
    "trainer.gradient_clip_val=1.0": "is not in this configuration yet: write +trainer.gradient_clip_val=VALUE",
    "policy=mine/policy.yaml": "policy=mine/policy.yaml is a path, and policy takes names: write --config-dir=DIR policy=NAME",
    "+callbacks.qat.calibration_images=5": "callbacks.qat.calibration_images is set by the run: write calibration_images=N",
    "callbacks.checkpoint.monitor=foo": "callbacks.checkpoint.monitor='foo' is not logged: write one of",
    "logger=null": "logger=null is not possible: write logger=NAME with one of csv, mlflow",
    "optim.schedule=[1]": "optim.schedule=[1] is not possible: write keys, as {_target_",
    "ptq.ladder={mine: []}": "ptq.ladder.mine is not in this configuration: write +ptq.ladder.mine=VALUE",
    "callbacks.checkpoint.save_top_k=2": "write +callbacks.checkpoint.save_top_k=VALUE to add it",
    "data.root=/tmp": "data.root is not in the data that you chose: leave it out, or choose another with data=NAME",
    "+trainer.strategy=ddp": "trainer.strategy is in this configuration already: write trainer.strategy=VALUE, without",
    "+optim.optimizer.maximize=true": "maximize=true is not possible: write false: losses are minimized",
    "+trainer.check_val_every_n_epoch=1000": "is more than trainer.max_epochs=100, so nothing is validated",
    "optim.lr=${nope}": "optim.lr refers to something that does not exist",
    "logger=[csv,tensorboard]": "logger=[csv,tensorboard] would be the last of them alone: write logger=tensorboard.",
    "policy=[w4a8,w8a8]": "policy=[w4a8,w8a8] is the same without w4a8, because policies that set the same keys overwrite",
    "export=[onnxruntime,none]": "has none beside others: write export=[onnxruntime], or export=none.",
    "freeze=null": "freeze=null is not possible: write keys, {batch_norm: ..., scales: ...}.",
    "trainer.accelerator=tpu": "trainer.accelerator='tpu' is not possible: write auto, cpu, gpu, cuda or mps.",
    "logger.version=../x": "write the name of something in the run's folder, a whole number from 0 to 1,000,000,000, or null.",
}


def test_what_is_refused_says_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    said = {override: refusal((override,), capsys) for override in REFUSED}
    assert {o: text for o, text in said.items() if REFUSED[o] not in (text or "")} == {}


CHANGES: list[tuple[str, Any, str]] = [
    ("callbacks.checkpoint.filename", "../best", "write the name of something in the run's folder"),
    ("logger.name", "../up", "write the name of something in the run's folder"),
    ("export.targets", {"portable": "/a.onnx"}, "write the name of something in the run's folder"),
    ("callbacks.recent.dirpath", "/tmp", "callbacks.recent.dirpath is set by the run: write hydra.run.dir=FOLDER"),
    ("optim.optimizer.lr", 0.3, "optim.optimizer.lr=0.3 is not lr=0.05 one level up, which would count for nothing"),
    (
        "optim.optimizer",
        {"_target_": "torch.optim.SGD", "_partial_": True},
        "optim.optimizer.lr is missing, and lr=0.05",
    ),
    ("objective", ["size", "size"], "or a list of some of them, each once"),
    ("seed", "${seed}", "seed refers to itself: write a value"),
    ("seed", "???", "seed has no value (???): write seed=VALUE"),
]


@pytest.mark.parametrize(("key", "value", "said"), CHANGES)
def test_a_value_that_is_not_possible_is_named(key: str, value: Any, said: str) -> None:
    config = composed()
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    with pytest.raises(ValueError, match=re.escape(said)):
        check_configuration(config)


def test_arguments_beside_any_others_have_their_types(capsys: pytest.CaptureFixture[str]) -> None:
    """TensorBoard's logger takes whatever its writer takes."""
    wrong = {
        "+logger.log_graph=maybe": "logger.log_graph='maybe' is not possible: .*TensorBoardLogger takes bool",
        "+logger.sub_dir=../..": "logger.sub_dir='../..' is not possible: write the name of something in the run's folder",
    }
    for override, said in wrong.items():
        assert re.search(said, refusal(("logger=tensorboard", override), capsys) or "")
    assert refusal(("logger=tensorboard", "+logger.flush_secs=5", "+logger.log_graph=true"), capsys) is None


ACCEPTED = [
    ("policy=w4a4", "policy.residual_bits=4", "trainer.max_steps=400", "seed=1"),
    ("trainer.devices=2", "trainer.strategy=ddp", "batch_size=64"),
    ("policy=w4", "policy.weight.granularity=per_group", "policy.weight.group_size=16"),
    ("+ptq.outside.ONNX_Runtime={_target_: qat.export.QuantizeStatic}",),
    ("+ptq.ladder.mine=[{_target_: qat.ptq.Calibrate, observer: MSE}, {_target_: qat.ptq.GPTQ}]",),
    ("~callbacks.checkpoint", "+trainer.gradient_clip_val=1.0", "optim.schedule=null", "progressive=[8, 4]"),
    ("+callbacks.mine={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 3}",),
    ("+callbacks.mine._target_=tests.experiment.test_schema.Mine", "+callbacks.mine.bound=7"),
    ("model._target_=torch.nn.Identity", "~model.depth", "~model.width"),
    ("callbacks.qat.quantizer_optimizer={_target_: torch.optim.Adam, _partial_: true, lr: 1e-3}",),
    ("progressive={0.0: 32, 0.1: 8, 0.4: 4}", "callbacks.recent.train_time_interval.seconds=0"),
    ("+my_rate=0.03", "optim.lr=${my_rate}"),
    ("policy.weight.quantizer=LSQPlus", "policy.activation.observer={_target_: Percentile, percentile: 99.0}"),
    ("float.max_steps=1", "trainer.max_steps=1", "data.limit_train=20", "calibration_images=10"),
    ("logger=wandb", "+logger.tags=[a]", "+logger.config={note: 1}", "oscillation=freeze", "ptq=none", "export=none"),
]


class Mine:
    """A callback of a user's own."""

    def __init__(self, bound: int) -> None: ...


@pytest.mark.slow
def test_what_documents_write_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert [said for overrides in ACCEPTED if (said := refusal(overrides, capsys))] == []


def test_arguments_of_a_users_own_class_are_those_of_its_signature() -> None:
    mine = "+callbacks.mine._target_=tests.experiment.test_schema.Mine"
    with pytest.raises(
        ValueError, match=r"unknown key callbacks.mine.bond of Mine; did you mean callbacks.mine.bound\?"
    ):
        check_configuration(composed(mine, "+callbacks.mine.bond=7"))
    with pytest.raises(ValueError, match=r"callbacks.mine.bound='x' is not possible: .*Mine takes int"):
        check_configuration(composed(mine, "+callbacks.mine.bound=x"))


@pytest.mark.slow
def test_every_option_is_possible() -> None:
    for group in ("quantizer", "observer", "export"):
        config = composed()
        for path in sorted((CONFIGS / group).glob("*.yaml")):
            config[group] = OmegaConf.load(path)  # as Hydra does with these, in a tenth of the time
            check_configuration(config)
    for group in ("optim", "policy", "oscillation", "ptq", "logger", "data", "trainer"):
        for path in sorted((CONFIGS / group).glob("*.yaml")):
            check_configuration(composed(f"{group}={path.stem}"))


def test_all_options_of_the_trainer_are_in_the_schema() -> None:
    assert {*keys_of(Trainer), *Trainer.GIVEN} == set(inspect.signature(L.Trainer).parameters)


def test_the_document_is_what_the_schema_says() -> None:
    spec = importlib.util.spec_from_file_location("write_configuration", DOCS / "write_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == program.document()
