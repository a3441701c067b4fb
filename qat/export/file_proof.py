"""What an exported file tells without the model that it was written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ANEW = "qat verify FILE --model RUN, or qat.verify(path, integer, batches), computes it anew."


@dataclass(frozen=True)
class FileProof:
    """What `verify(path)` finds without the model.

    Attributes:
        recorded: whether the file carries a hash of itself.
        intact: whether graph, constants and what the file says of itself are as they were written.
        verification: the counts of the verification that the file passed, as it was recorded; None: none was.
        metadata: all that the file says of itself.
        hashes: sha256 of the whole "file" on disk and, as far as the file says them itself, of its "content" (all but the
            metadata), of the state of the integer "model", and of the "policy".
        versions: of the packages that wrote the file.
    """

    recorded: bool
    intact: bool
    verification: dict[str, Any] | None
    metadata: dict[str, str]
    hashes: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the file is as it was written, and passed its verification then."""
        found = self.verification
        return self.intact and found is not None and bool(found["exact"]) and not found["alarm"]

    @property
    def sentences(self) -> list[str]:
        """What is known, and what cannot be."""
        if not self.recorded:
            return [
                "The file carries no hash: files of its kind have none, or this version of qat did not write it. Nothing is "
                f"known about it without the model: {ANEW}"
            ]
        if not self.intact:
            return [
                "The file was changed after it was written: its hash is not that of its graph, constants and metadata."
            ]
        found = ["The file is as it was written: graph, constants and metadata have the hash that was recorded."]
        if self.verification is None:
            found.append(
                "No verification was recorded in it: qat.verify(path, integer, batches, record=True) records one."
            )
        else:
            v = self.verification
            found.append(
                f"When it was verified, over {v['samples']:,} sample{'s' * (v['samples'] != 1)} in {v['runtime']}, "
                f"{v['code_mismatches']:,} of {v['codes_compared']:,} codes and {v['constants_compared']:,} stored numbers "
                "differed from the integer model."
            )
            found += [v["alarm"]] if v["alarm"] else []
            found += v["weak_data"]
        found.append(
            "Not known without the model: whether this processor and runtime give the same codes, and who wrote the file "
            f"(a hash is not a signature): {ANEW}"
        )
        return found

    def __str__(self) -> str:
        return "\n".join(self.sentences)
