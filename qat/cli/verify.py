"""`qat verify FILE`: may this file be deployed? For people and, by its exit status, for CI."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.cli.arguments import Parser, positive, print_json
from qat.cli.errors import usage_errors
from qat.cli.sources.spellings import DATA_HELP
from qat.export.targets import RUNTIMES

if TYPE_CHECKING:
    from qat.export import Verification
    from qat.export.file_proof import FileProof

VERIFIED, FAILED, UNPROVEN = 0, 1, 3
HEADLINES = {VERIFIED: "VERIFIED", FAILED: "NOT VERIFIED", UNPROVEN: "NOT PROVEN"}


@dataclass(frozen=True)
class Answer:
    """What is known of a file. status: the exit status; record: the details for `--json`."""

    status: int
    sentences: list[str]
    record: dict[str, Any] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    arguments = Parser(
        "qat verify",
        description="Say whether a file may be deployed. Without --model: whether it is as it was written, and what the "
        "verification found that is recorded in it (ONNX files have such records). With --model everything is computed anew: "
        "what the file stores, and every code in its runtime, against the integer model of a checkpoint, and that against what "
        "was trained.",
        epilog="exit status: 0 verified; 1 changed, damaged, of another model, or not what was trained; 2 wrong arguments; "
        "3 nothing is proven: no record, or data that show nothing (zeros, one sample)",
    )
    arguments.add_argument("file", type=Path, metavar="FILE", help="the file, .onnx, .pt2, .pte or .tflite")
    arguments.add_argument(
        "--model",
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="folder of the run that wrote the file, or a checkpoint of it",
    )
    arguments.add_argument(
        "--data",
        metavar="D",
        help=f"{DATA_HELP}; or inputs in a file, .npy, .safetensors (arrays named as forward's arguments) or .pt; by default "
        "the test images of the run",
    )
    arguments.add_argument("--samples", type=positive, metavar="N", help="use only the first N samples")
    arguments.add_argument(
        "--runtime",
        choices=[runtime.name for runtime in RUNTIMES],
        help="what runs the file; by default that of its suffix, ONNX Runtime for .onnx",
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser().parse_args(arguments)
    if options.model is None and (options.data or options.runtime or options.samples is not None):
        parser().error("--data, --samples and --runtime need --model PATH: without the model nothing is computed")
    from qat.export.verification import DamagedFileError, OtherModelError

    with usage_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an alarm is among the sentences
        try:
            answer = _from_record(options.file) if options.model is None else _computed(options)
        except (DamagedFileError, OtherModelError) as error:
            answer = Answer(FAILED, [" ".join(str(error).split())])
    _print(options.file, answer, as_json=options.json)
    return answer.status


def _print(file: Path, answer: Answer, as_json: bool) -> None:
    if as_json:
        status = HEADLINES[answer.status].lower()
        content = {"file": str(file), "status": status, "sentences": answer.sentences, **answer.record}
        print_json(content)
        return
    for sentence in answer.sentences:
        print(sentence)
    print(f"{HEADLINES[answer.status]}: {file}")


def _from_record(path: Path) -> Answer:
    """The answer from what the file says of itself."""
    import qat

    proof = qat.verify(path)
    record = {**_described(proof), "verification": proof.verification}
    found = proof.verification
    if not proof.recorded or (proof.intact and found is None) or (proof.passed and found and found.get("weak_inputs")):
        return Answer(UNPROVEN, proof.sentences, record)
    return Answer(VERIFIED if proof.passed else FAILED, proof.sentences, record)


def _computed(options: argparse.Namespace) -> Answer:
    """The answer from a comparison with the integer model."""
    import qat
    from qat.cli.sources.verification_inputs import first_samples, verification_inputs

    proof = qat.verify(options.file)
    checkpoint = _checkpoint(options.model)
    prepared = qat.load_checkpoint(checkpoint)
    if options.data is None:
        from qat.experiment.recorded_run import test_inputs

        batches: Iterable[Any] = test_inputs(checkpoint)
    else:
        batches = verification_inputs(options.data, options.file, prepared, options.samples)
    inputs = first_samples(batches, options.samples)
    found = qat.verify(options.file, qat.convert(prepared), inputs, prepared, runtime=options.runtime)
    record = {**_described(proof), "checkpoint": str(checkpoint), "verification": _counts(found)}
    if not found.passed:
        return Answer(FAILED, found.sentences, record)
    return Answer(UNPROVEN if found.weak_inputs else VERIFIED, found.sentences, record)


def _described(proof: FileProof) -> dict[str, Any]:
    return {"recorded": proof.recorded, "intact": proof.intact, "hashes": proof.hashes, "versions": proof.versions}


def _counts(found: Verification) -> dict[str, Any]:
    return {
        "exact": found.exact,
        "runtime": found.runtime,
        "samples": found.samples,
        "codes_compared": found.codes_compared,
        "constants_compared": found.constants_compared,
        "code_mismatches": found.code_mismatches,
        "float_ties": found.float_ties,
        "propagated": found.propagated,
        "alarm": found.alarm,
        "weak_inputs": found.weak_inputs,
        "weak_data": found.weak_data,
        "exercised": {site.name: site.exercised for site in found.sites if site.exercised is not None},
    }


def _checkpoint(path: Path) -> Path:
    """The checkpoint whose network a run exports: its best one."""
    if not path.is_dir():
        return path
    found = [folder / "best.ckpt" for folder in (path / "checkpoints", path) if (folder / "best.ckpt").is_file()]
    if not found:
        raise ValueError(f"{path} has no checkpoints/best.ckpt: give --model a checkpoint.")
    return found[0]
