"""The verdict on a run: it judges by paired intervals, says first who guesses, and agrees with the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shiftproof.diagnosis.evidence import Correctness, find_averages, find_differences
from shiftproof.evaluation.metrics import evaluate, scores
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.codec import document
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.records.summaries import run_from_summary, summary_json
from shiftproof.report import page, render_report, verdict
from shiftproof.report.accuracy import accuracy_table
from shiftproof.report.comparisons import names_of
from shiftproof.report.figures import path_figure
from shiftproof.report.guessing import guessing_sentences
from shiftproof.report.paths import path_table
from shiftproof.report.performance import difference_table

Answers = NDArray[np.int64]
JUDGEMENTS = ("clear", "keeps", "gives up", "gains", "raised", "cost", "did not help", "uncertain", "much")


def answered(labels: Answers, share: float, start: int = 0) -> Answers:
    """Answers of which a share is right, the samples from ``start`` on (a circle); the others name the next class."""
    right = np.roll(np.arange(len(labels)) < round(share * len(labels)), start)
    return np.where(right, labels, (labels + 1) % 3)


def judged(
    answers: Mapping[str, Mapping[str, Answers]],
    labels: Mapping[str, Answers],
    *,
    alpha: float = 0.5,
    rule: str = "fixed",
    kind: str = "natural",
    classes: int = 3,
) -> tuple[RunRecord, DiagnosisRecord]:
    """The run and the diagnosis of given answers, ``answers[model][set]``; the first set is the reference."""
    reference, *shifts = labels
    ids = [f"class {k}" for k in range(classes)]
    alphas = dict(zip(MODELS, (0.0, 1.0, alpha), strict=True))
    logits = {m: {name: np.eye(classes)[answers[m][name]] for name in labels} for m in MODELS}
    models = {
        m: {
            name: evaluate(
                scores(logits[m][name], y), y, ids, model=m, alpha=alphas[m], set_name=name
            )
            for name, y in labels.items()
        }
        for m in MODELS
    }  # fmt: skip
    points = tuple(
        PathPoint(
            alphas[m],
            models[m][reference].accuracy,
            {name: record.accuracy for name, record in models[m].items()},
            {name: record.interval for name, record in models[m].items()},
        )
        for m in ("zero_shot", "ensemble", "fine_tuned")
    )
    kinds = dict.fromkeys(shifts, kind)
    path = PathRecord(reference, tuple(shifts), points)
    run = RunRecord(
        "fruit", reference, tuple(shifts), kinds, models, alpha, rule, path, 0.95, "clopper-pearson", {}, 0, {}
    )
    right = Correctness({m: {n: answers[m][n] == y for n, y in labels.items()} for m in MODELS}, {})
    means = (tuple(shifts),) if len(shifts) > 1 else ()
    missing = ("pairs", "connectivity", "losses", "by_class", "confidence", "temperatures", "robustness", "movement")
    diagnosis = DiagnosisRecord(
        suite="fruit",
        reference=reference,
        shifts=tuple(shifts),
        kinds=kinds,
        seed=0,
        alpha=alpha,
        level=0.95,
        clusters=dict.fromkeys(labels, "sample"),
        overrides={},
        differences=find_differences(right, means),
        averages=find_averages(right, means),
        **dict.fromkeys(missing, ()),  # type: ignore[arg-type]
    )
    return run, diagnosis


LABELS = {name: np.arange(300) % 3 for name in ("photo", "sketch", "painting")}


def judged_shares(
    zero_shot: tuple[float, ...], fine_tuned: tuple[float, ...], ensemble: tuple[float, ...], **changes: object
) -> tuple[RunRecord, DiagnosisRecord]:
    """The run in which the models are right on these shares of the sets' samples, each on the first ones."""
    labels = dict(list(LABELS.items())[: len(zero_shot)])
    shares = dict(zip(MODELS, (zero_shot, fine_tuned, ensemble), strict=True))
    answers = {
        m: {name: answered(y, share) for (name, y), share in zip(labels.items(), shares[m], strict=True)}
        for m in MODELS
    }
    return judged(answers, labels, **changes)  # type: ignore[arg-type]


def test_a_paired_difference_is_judged_where_the_intervals_of_the_accuracies_overlap() -> None:
    run, diagnosis = judged_shares((0.6, 0.60), (0.9, 0.66), (0.9, 0.66))
    tuned, start = (run.models[m]["sketch"].interval for m in ("fine_tuned", "zero_shot"))
    assert tuned[0] < start[1]  # they overlap, but no image got worse
    text = verdict(run, diagnosis)
    assert "Fine-tuning alone raised the accuracy on the natural shift sketch from 60.0 % to 66.0 %" in text
    assert "did not clearly" not in text
    assert "overlap" not in text


def test_the_usual_picture_has_every_difference_with_its_range() -> None:
    text = verdict(*judged_shares((0.9, 0.8, 0.6), (0.97, 0.6, 0.5), (0.97, 0.83, 0.66)))
    assert "so it loses at most 5 points of the fine-tuned accuracy (0.0 points, −1.2 to +1.2)" in text
    assert "On the mean of the 2 natural shifts fine-tuning alone cost 15.0 points (−" in text
    assert "; from 70.0 % to 55.0 %); the ensemble reaches 74.5 %, 19.5 points above fine-tuned (+" in text
    assert "4.5 points above zero-shot (+" in text
    assert text.endswith("Ranges after a difference are its paired 95 % interval.")


@pytest.mark.parametrize("head", ["probe", "own", "trained"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_start_whose_head_is_not_from_text_is_never_called_zero_shot(head: str, alpha: float) -> None:
    run, diagnosis = judged_shares((0.9, 0.8, 0.6), (0.97, 0.6, 0.5), (0.97, 0.83, 0.66), alpha=alpha)
    run = replace(run, start={"model": "lite0", "head": head})
    tables = [accuracy_table(run, diagnosis), path_table(run), difference_table(diagnosis, names_of(run)["zero_shot"])]
    shown = [cell for table in tables for row in (table.header, *table.rows) for cell in row]
    assert not any(
        "zero" in text for text in (verdict(run, diagnosis), *shown, *(table.note or "" for table in tables))
    )
    assert ("the ensemble is the start itself" if alpha == 0 else "the start has 90.0 %") in verdict(run, diagnosis)
    assert "start" in shown
    assert "0 (start)" in shown or "0 (start, chosen)" in shown
    assert "start" in {text.get_text() for text in path_figure(run).legends[0].get_texts()}


def test_an_unclear_difference_is_called_so() -> None:
    labels = {name: LABELS[name] for name in ("photo", "sketch")}
    answers = {
        "zero_shot": {name: answered(y, 0.6) for name, y in labels.items()},
        "fine_tuned": {"photo": answered(labels["photo"], 0.7), "sketch": answered(labels["sketch"], 0.61, 90)},
        "ensemble": {name: answered(y, 0.68, 60) for name, y in labels.items()},
    }
    text = verdict(*judged(answers, labels))
    assert "Fine-tuning alone did not clearly change the accuracy on the natural shift sketch" in text
    assert "a difference that is uncertain (−2.0 points, −" in text
    assert "keeps" not in text


@given(st.data())
def test_the_verdict_agrees_with_the_table_of_differences(data: st.DataObject) -> None:
    labels = {name: np.arange(60) % 3 for name in ("photo", "sketch")}
    share = st.floats(0.5, 1)
    answers = {
        m: {name: answered(y, data.draw(share), data.draw(st.integers(0, 59))) for name, y in labels.items()}
        for m in MODELS
    }
    run, diagnosis = judged(answers, labels)
    text = verdict(run, diagnosis)
    low, high = diagnosis.difference("fine_tuned", "zero_shot", "sketch").difference.interval  # type: ignore[union-attr,misc]
    assert ("did not clearly change" in text) == (low <= 0 <= high)
    assert ("fine-tuning alone cost" in text) == (high < 0)
    low, high = diagnosis.difference("ensemble", "fine_tuned", "photo").difference.interval  # type: ignore[union-attr,misc]
    assert ("so it gives up" in text) == (high < 0)
    assert ("so it loses at most 5 points" in text) == (low <= 0 <= high and low >= -0.05)
    assert run_from_summary(json.loads(json.dumps(summary_json(run)))).models["ensemble"]["photo"].class_count == 3


def test_without_a_diagnosis_nothing_is_judged() -> None:
    run, _ = judged_shares((0.9, 0.8, 0.6), (0.97, 0.6, 0.5), (0.9, 0.82, 0.62))
    text = verdict(run)
    assert "a difference of −7.0 points" in text
    assert "Fine-tuning alone changed the accuracy on the mean of the 2 natural shifts from 70.0 % to 55.0 %" in text
    assert [word for word in JUDGEMENTS if word in text] == []


def test_a_run_that_guesses_is_said_to_guess_and_keeps_nothing() -> None:
    text = verdict(*judged_shares((1 / 3, 0.3), (1 / 3, 0.36), (1 / 3, 1 / 3)))
    assert text.startswith("Zero-shot cannot be told from guessing (1 of 3 classes, 33.3 %) on photo: 33.3 (")
    assert "use another model or other prompts" in text
    assert "Fine-tuned cannot be told from guessing" in text
    assert "raise `finetune.lr` or `finetune.epochs`" in text
    assert "No model has learned the task, so this run says nothing about robustness." in text
    assert "keeps" not in text


def test_a_constant_answer_is_said_first() -> None:
    labels = {name: LABELS[name] for name in ("photo", "sketch")}
    answers = {m: {name: answered(y, 0.9) for name, y in labels.items()} for m in MODELS}
    answers["fine_tuned"]["photo"] = np.where(np.arange(300) < 295, 2, 0)
    text = verdict(*judged(answers, labels))
    assert text.startswith("Fine-tuned names one class for nearly all images on photo: “class 2” for 98.3 %.")
    assert "keeps" not in text


def test_a_set_of_one_class_is_no_sign_of_a_constant_answer() -> None:
    labels = {"photo": LABELS["photo"], "sketch": np.zeros(100, dtype=np.int64)}
    answers = {m: {name: answered(y, 0.97) for name, y in labels.items()} for m in MODELS}
    assert "one class" not in verdict(*judged(answers, labels))


def test_worse_than_chance_points_to_the_labels() -> None:
    text = verdict(*judged_shares((0.05, 0.9), (0.9, 0.9), (0.9, 0.9)))
    assert text.startswith("Zero-shot is worse than guessing, so its classes may not be those of the labels")


def test_an_ensemble_that_gives_up_much_comes_with_advice() -> None:
    text = verdict(*judged_shares((0.34, 0.4), (0.667, 0.6), (0.356, 0.45)))
    assert "so it gives up 31.0 points (−" in text
    assert "try an alpha above 0.5, or `alpha_rule: reference`" in text
    assert "or a better start or other prompts" in text
    text = verdict(*judged_shares((0.5, 0.4), (0.667, 0.6), (0.5, 0.45), rule="reference"))
    assert "That is much to give up; try an alpha above 0.5." in text


def test_the_shifts_fall_back_to_all_of_them_and_to_none() -> None:
    several = judged_shares((0.9, 0.8, 0.6), (0.97, 0.6, 0.5), (0.97, 0.83, 0.66), kind="synthetic")
    assert "mean of the 2 synthetic shifts" in verdict(*several)
    assert "says nothing about robustness" in verdict(*judged_shares((0.9,), (0.97,), (0.97,)))


@pytest.mark.parametrize(("alpha", "name"), [(0.0, "zero-shot"), (1.0, "fine-tuned")])
def test_an_ensemble_that_is_one_of_its_ends_is_called_so(alpha: float, name: str) -> None:
    ends = ((0.9, 0.8), (0.97, 0.6))
    run, diagnosis = judged_shares(*ends, ends[int(alpha)], alpha=alpha)
    assert f"the ensemble is the {name} model itself" in verdict(run, diagnosis)


def test_a_run_of_the_previous_version_is_not_suspected_of_guessing() -> None:
    run, diagnosis = judged_shares((1 / 3, 0.3), (1 / 3, 0.36), (1 / 3, 1 / 3))
    summary = summary_json(run)
    for entry in (entry for by_set in summary["models"].values() for entry in by_set.values()):
        for name in ("class_count", "top_class", "top_share", "majority_share"):
            del entry[name]
    assert "guessing" not in verdict(run_from_summary(json.loads(json.dumps(summary))), diagnosis)


def test_the_page_judges_by_the_diagnosis_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tables and figures of a diagnosis need parts that a verdict does not.
    monkeypatch.setattr(page, "diagnosis_tables", lambda *_: ())
    monkeypatch.setattr(page, "diagnosis_figures", lambda *_: {})
    run, diagnosis = judged_shares((0.6, 0.60), (0.9, 0.66), (0.9, 0.66))
    (tmp_path / "summary.json").write_text(json.dumps(summary_json(run)), encoding="utf-8")
    (tmp_path / "diagnosis.json").write_text(json.dumps(document(diagnosis)), encoding="utf-8")
    text = render_report([tmp_path]).read_text(encoding="utf-8")
    assert verdict(run, diagnosis).replace(" %", "\u00a0%") in text


def test_sets_with_other_numbers_of_classes_have_their_own_chance_level() -> None:
    records = [
        AccuracyRecord("m", 0.0, name, 1 / count, (0.5 / count, 2 / count), 900, class_count=count)
        for name, count in (("imagenet", 1000), ("imagenet-r", 200))
    ]
    first, second = guessing_sentences("zero-shot", records)
    assert "1 of 1000 classes, 0.1 %" in first and "imagenet:" in first
    assert "1 of 200 classes, 0.5 %" in second and "imagenet-r:" in second
