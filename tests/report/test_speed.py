"""What the report says of a file that is slower than float."""

import dataclasses

from qat.report import Results
from qat.report.judgement.speed import speed_sentences


def sentences(results: Results, shares: dict[str, float], vnni: bool | None = True, **latency: float) -> list[str]:
    assert results.verification is not None
    rows = [dataclasses.replace(row, **latency) if row.kind == "qat_onnxruntime" else row for row in results.rows]
    found = dataclasses.replace(results.verification, latency_shares=shares)
    return speed_sentences(rows, dataclasses.replace(results.environment, vnni=vnni), found)


def test_a_fast_file_needs_no_sentence(results: Results) -> None:
    assert sentences(results, {"conv1 (QLinearConv)": 1.0}) == []


def test_the_operators_that_take_the_time_are_named(results: Results) -> None:
    shares = {"conv1 (QLinearConv)": 0.64, "pool (MaxPool)": 0.2, "fc (QGemm)": 0.09, "x (QuantizeLinear)": 0.07}
    (sentence,) = sentences(results, shares, latency_ms_batch32=100.0)
    assert "2.62\u00d7 at batch 32" in sentence
    assert sentence.endswith(": 64% of the time is in conv1 (QLinearConv), 20% in pool (MaxPool).")


def test_without_vnni_the_report_points_to_weights_of_7_bits(results: Results) -> None:
    (sentence,) = sentences(results, {}, vnni=False, latency_ms_batch1=100.0)
    assert "policy.reduce_range=true" in sentence


def test_no_cause_is_given_that_was_not_measured(results: Results) -> None:
    (sentence,) = sentences(results, {}, latency_ms_batch1=100.0)
    assert sentence.endswith(": where its time goes was not measured.")
    (sentence,) = sentences(results, {f"{i} (QLinearConv)": 0.05 for i in range(20)}, latency_ms_batch1=100.0)
    assert sentence.endswith(": no operator takes more than 10% of the time.")


def test_what_was_measured_of_one_file_is_not_said_of_another(results: Results) -> None:
    rows = [dataclasses.replace(row, latency_ms_batch1=100.0) if row.kind == "ptq" else row for row in results.rows]
    assert results.verification is not None
    found = dataclasses.replace(results.verification, latency_shares={"conv1 (QLinearConv)": 0.64})
    said = speed_sentences(rows, dataclasses.replace(results.environment, vnni=True), found)
    assert said
    assert all(sentence.endswith(": where its time goes was not measured.") for sentence in said)
