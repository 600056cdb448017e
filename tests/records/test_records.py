"""Records and their JSON form: what was measured comes back as it was, and nothing is guessed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.records import (
    accuracy,
    backgrounds,
    comparisons,
    diagnosis,
    merges,
    paths,
    rules,
    runs,
    studies,
    windows,
)
from shiftproof.records.accuracy import GroupRecord
from shiftproof.records.codec import document, from_json, to_json
from shiftproof.records.paths import PathPoint
from shiftproof.records.summaries import (
    member_from_json,
    member_json,
    path_from_json,
    path_json,
    run_from_summary,
    study_from_json,
    study_json,
    summary_json,
)

FRACTIONS = st.floats(0, 1)
INTERVALS = st.tuples(FRACTIONS, FRACTIONS)
GROUPS = st.builds(GroupRecord, FRACTIONS, INTERVALS, st.integers(1, 10_000))
ACCURACIES = st.builds(
    sp.records.AccuracyRecord,
    model=st.sampled_from(["zero_shot", "fine_tuned", "ensemble"]),
    alpha=st.none() | FRACTIONS,
    set=st.text(min_size=1),
    accuracy=FRACTIONS,
    interval=INTERVALS,
    n=st.integers(1, 10_000),
    calibration_error=st.none() | FRACTIONS,
    per_class=st.dictionaries(st.text(), FRACTIONS, max_size=3),
    groups=st.dictionaries(st.text(), GROUPS, max_size=2),
)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def path_of(accuracy: dict[float, tuple[float, float]]) -> sp.records.PathRecord:
    """A path of (reference, shift) accuracies by alpha."""
    points = [
        PathPoint(alpha, reference, {"photo": reference, "sketch": shift}, {"photo": (0, 1), "sketch": (0, 1)})
        for alpha, (reference, shift) in accuracy.items()
    ]
    return sp.records.PathRecord("photo", ("sketch",), tuple(points))


def run_of() -> sp.records.RunRecord:
    def record(model: str, alpha: float, name: str, value: float) -> sp.records.AccuracyRecord:
        groups = {"seen": GroupRecord(0.5, (0.25, 0.75), 10)} if name == "sketch" else {}
        interval = (value - 0.1, value + 0.1)
        return sp.records.AccuracyRecord(
            model, alpha, name, value, interval, 20, 0.05, {}, groups, precision="bfloat16"
        )

    ends = {"zero_shot": (0.0, 0.6, 0.5), "fine_tuned": (1.0, 0.8, 0.3), "ensemble": (0.5, 0.75, 0.55)}
    return sp.records.RunRecord(
        suite="own",
        reference="photo",
        shifts=("sketch", "noise-3"),
        kinds={"sketch": "natural", "noise-3": "synthetic"},
        models={
            model: {
                "photo": record(model, alpha, "photo", reference),
                "sketch": record(model, alpha, "sketch", shift),
                "noise-3": record(model, alpha, "noise-3", shift / 2),
            }
            for model, (alpha, reference, shift) in ends.items()
        },
        alpha=0.5,
        alpha_rule="fixed",
        path=dataclasses.replace(
            path_of({0.0: (0.6, 0.5), 0.5: (0.75, 0.55), 1.0: (0.8, 0.3)}),
            shifts=("sketch",),
        ),
        interval_level=0.95,
        interval_method="clopper-pearson",
        seconds={"fine_tune": 1.5},
        seed=3,
        versions={"shiftproof": "0.1.0"},
        validation=sp.records.HeldOutRecord(12, 60, 3, groups=4, absent_classes=("fig",)),
        precision="bfloat16",
    )


@given(record=ACCURACIES)
def test_an_accuracy_record_comes_back_as_it_was(record: sp.records.AccuracyRecord) -> None:
    assert from_json(sp.records.AccuracyRecord, through_json(to_json(record))) == record


def test_a_path_comes_back_as_it_was() -> None:
    path = path_of({0.0: (0.6, 0.5), 0.1: (0.7, 0.55), 1.0: (0.8, 0.3)})
    assert path_from_json("photo", ("sketch",), through_json(path_json(path))) == path
    assert path.alphas == (0.0, 0.1, 1.0)


def test_a_run_comes_back_as_it_was() -> None:
    run = run_of()
    full = dataclasses.replace(
        run,
        shifts=("sketch",),
        kinds={"sketch": "natural"},
        models={m: {s: r for s, r in sets.items() if s != "noise-3"} for m, sets in run.models.items()},
    )
    assert run_from_summary(through_json(summary_json(full))) == full


def test_the_summary_has_the_keys_that_outsiders_read() -> None:
    run = run_of()
    summary = through_json(summary_json(dataclasses.replace(run, shifts=("sketch",))))
    assert summary["schema"] == 1
    assert set(summary) == {
        *("schema", "suite", "reference", "shifts", "kinds", "models", "interval", "alpha", "alpha_rule"),
        *(
            "alpha_path",
            "oracle_alpha",
            "seconds",
            "seed",
            "versions",
            "conversions",
            "skipped",
            "start",
            "validation",
            "batch_norm",
            "precision",
            "later_versions",
        ),
    }
    entry = summary["models"]["fine_tuned"]["sketch"]
    assert (entry["accuracy"], entry["n"]) == (0.3, 20)
    assert entry["interval"] == pytest.approx([0.2, 0.4])
    assert summary["interval"] == {"level": 0.95, "method": "clopper-pearson"}
    assert summary["oracle_alpha"] == {"photo": 1.0, "sketch": 0.5}
    assert [point["alpha"] for point in summary["alpha_path"]] == [0.0, 0.5, 1.0]
    assert summary["alpha_path"][1]["accuracy"] == {"photo": 0.75, "sketch": 0.55}


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_another_schema_is_refused(schema: object) -> None:
    with pytest.raises(sp.InputError, match=r"schema .* reads schema 1"):
        run_from_summary({"schema": schema})


def test_the_oracle_breaks_ties_toward_zero_shot() -> None:
    path = path_of({0.0: (0.6, 0.5), 0.25: (0.8, 0.7), 0.5: (0.8, 0.7), 0.75: (0.8, 0.2), 1.0: (0.7, 0.2)})
    assert path.oracle() == {"photo": 0.25, "sketch": 0.25}
    assert path_of({0.0: (0.5, 0.5), 1.0: (0.5, 0.5)}).oracle() == {"photo": 0.0, "sketch": 0.0}


@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=9))
def test_the_oracle_is_the_first_of_the_best(values: list[float]) -> None:
    alphas = [i / (len(values) - 1) for i in range(len(values))]
    result = path_of({a: (0.5, v) for a, v in zip(alphas, values, strict=True)}).oracle()["sketch"]
    best = 0
    for i in range(len(values)):
        if values[i] > values[best]:
            best = i
    assert result == alphas[best]


def test_a_point_is_found_in_spite_of_rounding_and_never_guessed() -> None:
    path = path_of({0.0: (0.6, 0.5), 0.1 + 0.2: (0.7, 0.6), 1.0: (0.8, 0.3)})
    assert path.at(0.3).validation == 0.7
    with pytest.raises(sp.InputError, match=r"alpha 0.31 is not on the path. Evaluated: 0.0, "):
        path.at(0.31)


def test_means_are_taken_over_the_sets_of_one_kind() -> None:
    run = run_of()
    assert run.sets == ("photo", "sketch", "noise-3")
    assert run.shifts_of("natural") == ("sketch",)
    assert run.shifts_of("synthetic") == ("noise-3",)
    assert run.mean_accuracy("zero_shot", ("sketch", "noise-3")) == pytest.approx((0.5 + 0.25) / 2)
    assert run.mean_accuracy("zero_shot", ()) is None


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        run_of().path.points[0].alpha = 0.9  # type: ignore[misc]


def test_a_summary_is_read_without_torch() -> None:
    text = json.dumps(summary_json(dataclasses.replace(run_of(), shifts=("sketch",))))
    code = (
        "import json, sys; from shiftproof.records.summaries import run_from_summary; "
        "run = run_from_summary(json.load(sys.stdin)); "
        "print(run.models['ensemble']['sketch'].accuracy, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == "0.55 False\n"


RESULTS = Path(__file__).parents[2] / "docs" / "results"
MODULES = (accuracy, backgrounds, comparisons, diagnosis, merges, paths, rules, runs, studies, windows)
RECORDS = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind)
    and isinstance(kind, type)
    and kind.__module__ == module.__name__
    and kind not in (windows.WindowExample, windows.MapExample)  # images for figures, which no file holds
]
# JSON has no NaN, and keeps plain values only where a record says Any.
SCALARS: Mapping[Any, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(),
    str: st.text(max_size=5),
    bool: st.booleans(),
    type(None): st.none(),
    Any: st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
}


def values_of(annotation: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a type that records are made of, small enough to be drawn in no time."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return st.deferred(
            lambda: st.builds(annotation, **{name: values_of(hint, depth + 1) for name, hint in hints.items()})
        )
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values_of(part, depth) for part in inner))
    if origin is Mapping:
        # A record that holds records of its own type has to end somewhere.
        ends = depth > 4
        return st.just({}) if ends else st.dictionaries(st.text(max_size=3), values_of(inner[1], depth), max_size=1)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(values_of(inner[0], depth), max_size=1).map(tuple)
    if origin is tuple:
        return st.tuples(*(values_of(part, depth) for part in inner))
    return SCALARS[annotation]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_record_comes_back_as_it_was(kind: type[Any], data: st.DataObject) -> None:
    record = data.draw(values_of(kind))
    assert from_json(kind, through_json(to_json(record))) == record
    assert from_json(kind, through_json(document(record))) == record


@given(data=st.data())
def test_a_study_member_comes_back_as_it_was(data: st.DataObject) -> None:
    member = data.draw(values_of(studies.StudyMember))
    written = through_json(document(member_json(member)))
    assert member_from_json(member.path.reference, member.path.shifts, written) == member


def test_a_mapping_of_any_kind_becomes_a_dictionary() -> None:
    counts = types.MappingProxyType({"apple": 3})
    record = sp.records.AccuracyRecord("zero_shot", 0.0, "photo", 0.5, (0.4, 0.6), 3, class_counts=counts)
    assert to_json(record)["class_counts"] == {"apple": 3}
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"what": object()})


# What files of version 0.1 leave out: all their intervals take the samples as independent.
INDEPENDENT_SAMPLES = {"interval_method": "clopper-pearson", "clusters": None}


def written_before(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def test_files_of_the_previous_version_are_read_and_written_as_before() -> None:
    summary = written_before("demo-seed-0.json")
    written = summary_json(run_from_summary(summary))
    for entry in (entry for by_set in summary["models"].values() for entry in by_set.values()):
        for share in (entry, *entry["groups"].values()):
            for name, value in INDEPENDENT_SAMPLES.items():
                share.setdefault(name, value)
        for name in ("class_count", "top_class", "top_share", "majority_share"):
            entry.setdefault(name, None)
        # Sets with a protocol or with unequal classes have these since then.
        entry.setdefault("skipped", 0)
        entry |= {"protocol": None, "metrics": {}, "metric_intervals": {}, "variants": {}}
    for point in summary["alpha_path"]:
        point.setdefault("interval_method", {})
    summary.setdefault("conversions", {})
    summary.setdefault("start", {})
    summary.setdefault("validation", None)
    summary.setdefault("batch_norm", "averaged")
    summary.setdefault("precision", "float32")
    summary.setdefault("skipped", {})
    summary.setdefault("later_versions", [])
    assert list(written) == list(summary)
    assert written == summary
    result = written_before("diagnosis-seed-0.json")
    for pair in result["pairs"]:
        pair["cka"].setdefault("corrected", None)
    for curve in (*result["connectivity"], *(c for path in result["other_paths"] for c in path["connectivity"])):
        curve.setdefault("ends", None)
    assert list(document(from_json(sp.records.DiagnosisRecord, result)).items()) == list(result.items())
    windowed = written_before("strong-edge-seed-0.json")  # has no schema
    again = document(from_json(windows.StrongEdgeStudy, windowed))
    assert again == {"schema": 1, **windowed}


@pytest.mark.parametrize("name", ["hyperparameters", "recipes", "tuning"])
def test_a_study_of_the_previous_version_is_read(name: str) -> None:
    value = written_before(f"study-{name}.json")
    record = study_from_json(value)
    assert study_from_json(through_json(study_json(record))) == record
    for member in (*value["members"], *value["soups"]):
        member.setdefault("head", None)  # neither were these
        for point in member["path"]:
            point.setdefault("validation_interval", None)  # was not kept when these were written
            point.setdefault("interval_method", {})
    value.setdefault("later_versions", [])
    assert study_json(record) == value


@pytest.mark.parametrize(
    ("place", "damage", "message"),
    [
        (("models", "ensemble", "photo"), {"n": "many"}, r"models\.ensemble\.photo\.n: Input should be a valid int"),
        (("models", "ensemble", "photo"), {"interval": [0.1]}, r"models\.ensemble\.photo\.interval\.1: Field required"),
        (("interval",), {"level": "0.95"}, r"interval\.level: Input should be a valid number"),
        (("alpha_path", 1), {"validation": None}, r"alpha_path\.1\.validation: Input should be a valid number"),
        (("models",), {"other": {}}, r"models\.other"),
        ((), {"seed": True}, "seed: Input should be a valid integer"),
    ],
)
def test_a_damaged_entry_is_named_by_its_place(place: tuple[Any, ...], damage: Any, message: str) -> None:
    summary = through_json(summary_json(dataclasses.replace(run_of(), shifts=("sketch",))))
    part = summary
    for name in place:
        part = part[name]
    part.update(damage)
    with pytest.raises(sp.InputError, match=f"the summary is damaged at {message}"):
        run_from_summary(summary)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_record_at_all_is_refused(value: Any) -> None:
    with pytest.raises(sp.InputError, match="the study is damaged: Input should be"):
        study_from_json(value)


def test_more_damage_is_counted() -> None:
    with pytest.raises(sp.InputError, match=r"damaged at reference: Field required \(and 4 more\)"):
        from_json(sp.records.RulesRecord, {"shifts": []})
    with pytest.raises(sp.InputError, match=r"the rules has schema 2; this version reads schema 1"):
        from_json(sp.records.RulesRecord, {"schema": 2}, "the rules")
