"""A verification as a record of `qat.report`. Imports no Lightning: the command line uses it, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from qat.export import Verification, verify
from qat.export.verification import SiteAgreement
from qat.report import IDENTICAL_DB, SiteResult, VerificationResult


def verification_record(
    path: Path, verification: Verification, latency_shares: Mapping[str, float] | None = None
) -> VerificationResult:
    """The record of a verification. Differences are rounded up to whole steps, so that none disappears.

    latency_shares: where the time of the file goes, if that was measured.
    """
    proof = verify(path) if path.suffix == ".onnx" else None
    return VerificationResult(
        codes_compared=verification.codes_compared,
        code_mismatches=verification.code_mismatches,
        top1_agreement=verification.top1_agreement,
        max_step_difference=math.ceil(verification.max_step_difference),
        images=verification.samples,
        quantized_operators=dict(verification.operators),
        sites=[_describe_agreement(site) for site in verification.sites],
        constants_compared=verification.constants_compared,
        propagated=verification.propagated,
        float_ties=verification.float_ties,
        not_a_number=sum(s.not_a_number for s in verification.sites),
        prediction_changes=verification.prediction_changes,
        alarm=verification.alarm,
        notes=verification.sentences,
        file=path.name,
        hashes=proof.hashes if proof else {},
        versions=proof.versions if proof else {},
        weak_inputs=verification.weak_inputs,
        latency_shares={} if latency_shares is None else dict(latency_shares),
    )


def _describe_agreement(site: SiteAgreement) -> SiteResult:
    return SiteResult(
        name=site.name,
        shape=tuple(site.shape),
        codes_compared=site.codes_compared,
        code_mismatches=site.code_mismatches,
        max_step_difference=math.ceil(site.max_step_difference),
        propagated=site.propagated,
        float_ties=site.float_ties,
        exercised=site.exercised,
        sqnr_db=None if site.sqnr_db is None else min(max(site.sqnr_db, -IDENTICAL_DB), IDENTICAL_DB),
    )
