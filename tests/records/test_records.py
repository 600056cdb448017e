"""Records and their JSON form: what was measured comes back as it was, and nothing is guessed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.records.results import GroupRecord, PathPoint

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
        return sp.records.AccuracyRecord(model, alpha, name, value, (value - 0.1, value + 0.1), 20, 0.05, {}, groups)

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
    )


@given(record=ACCURACIES)
def test_an_accuracy_record_comes_back_as_it_was(record: sp.records.AccuracyRecord) -> None:
    assert sp.records.AccuracyRecord.from_json(through_json(record.to_json())) == record


def test_a_path_comes_back_as_it_was() -> None:
    path = path_of({0.0: (0.6, 0.5), 0.1: (0.7, 0.55), 1.0: (0.8, 0.3)})
    assert sp.records.PathRecord.from_json("photo", ("sketch",), through_json(path.to_json())) == path
    assert path.alphas == (0.0, 0.1, 1.0)


def test_a_run_comes_back_as_it_was() -> None:
    run = run_of()
    full = dataclasses.replace(
        run,
        shifts=("sketch",),
        kinds={"sketch": "natural"},
        models={m: {s: r for s, r in sets.items() if s != "noise-3"} for m, sets in run.models.items()},
    )
    assert sp.records.RunRecord.from_json(through_json(full.to_json())) == full


def test_the_summary_has_the_keys_that_outsiders_read() -> None:
    run = run_of()
    summary = through_json(dataclasses.replace(run, shifts=("sketch",)).to_json())
    assert summary["schema"] == 1
    assert set(summary) == {
        *("schema", "suite", "reference", "shifts", "kinds", "models", "interval", "alpha", "alpha_rule"),
        *("alpha_path", "oracle_alpha", "seconds", "seed", "versions"),
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
    with pytest.raises(sp.InputError, match=r"schema .* reads 1"):
        sp.records.RunRecord.from_json({"schema": schema})


def test_the_oracle_breaks_ties_toward_zero_shot() -> None:
    path = path_of({0.0: (0.6, 0.5), 0.25: (0.8, 0.7), 0.5: (0.8, 0.7), 0.75: (0.8, 0.2), 1.0: (0.7, 0.2)})
    assert path.oracle() == {"photo": 0.25, "sketch": 0.25}
    assert path_of({0.0: (0.5, 0.5), 1.0: (0.5, 0.5)}).oracle() == {"photo": 0.0, "sketch": 0.0}


@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=9))
def test_the_oracle_is_the_first_of_the_best(values: list[float]) -> None:
    alphas = [i / (len(values) - 1) for i in range(len(values))]
    found = path_of({a: (0.5, v) for a, v in zip(alphas, values, strict=True)}).oracle()["sketch"]
    best = 0
    for i in range(len(values)):
        if values[i] > values[best]:
            best = i
    assert found == alphas[best]


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
    text = json.dumps(dataclasses.replace(run_of(), shifts=("sketch",)).to_json())
    code = (
        "import json, sys; from shiftproof.records.results import RunRecord; "
        "run = RunRecord.from_json(json.load(sys.stdin)); "
        "print(run.models['ensemble']['sketch'].accuracy, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == "0.55 False\n"
