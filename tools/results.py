"""Writes the tables of the README and the docs from the committed results (docs/results, benchmarks/results).

    python tools/results.py                       regenerate the tables
    python tools/results.py --take runs/demo-0 runs/demo-1 runs/demo-2   copy the summaries of the demo first
    python tools/results.py --take runs/strong-edge                      copy a strong-edge study and its figures first
    python tools/results.py --take runs/hyperparameters runs/recipes     copy studies and their figures first
    python tools/results.py --check               fail if a page differs from the results

The tables stand between the marks ``<!-- NAME: python tools/results.py -->`` and ``<!-- end of NAME -->`` of a page.
"""

from __future__ import annotations

import csv
import functools
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from claims import beyond_half, claim_sections

from shiftproof.ensembling.rules import choose_alpha
from shiftproof.records.codec import from_json
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.records.studies import StudyRecord
from shiftproof.records.summaries import run_from_summary, study_from_json
from shiftproof.records.windows import StrongEdgeStudy
from shiftproof.report.studies import equal_reference_table, spread_table, study_table, study_verdict
from shiftproof.report.tables import Table, per_cent, signed_points
from shiftproof.report.windows import clean_table, contrast_table, strong_edge_verdict, window_kinds, window_table
from shiftproof.storage import read_json, write_json
from shiftproof.studies.spreads import measure_spreads

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
NAMES = {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned", "ensemble": "WiSE-FT, alpha 0.5"}


def demo_runs() -> list[RunRecord]:
    """The committed summaries of the demo, in the order of their seeds."""
    return [run_from_summary(read_json(path)) for path in sorted(RESULTS.glob("demo-seed-*.json"))]


def summary_table() -> str:
    """One row per model: the mean over the seeds of the demo, and their range."""
    runs = demo_runs()
    rows = []
    for model in MODELS:
        reference = [run.models[model][run.reference].accuracy for run in runs]
        shifted = [[run.mean_accuracy(model, run.shifts_of(kind)) or 0 for run in runs] for kind in _KINDS]
        rows.append((NAMES[model], *map(_mean_and_range, (reference, *shifted))))
    natural = len(runs[0].shifts_of("natural"))
    synthetic = len(runs[0].shifts_of("synthetic"))
    header = ("model", "reference", f"mean of the {natural} natural shifts", f"mean of the {synthetic} corruptions")
    title = f"Accuracy in per cent, the mean of {len(runs)} seeds, with the lowest and the highest seed in brackets:"
    return f"{title}\n\n{_markdown(header, rows)}"


_KINDS = ("natural", "synthetic")


def _mean_and_range(values: Sequence[float]) -> str:
    mean, low, high = (f"{100 * value:.1f}" for value in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low}–{high})"


def demo_tables() -> str:
    """Every seed of the demo in per cent: all sets, and seen and withheld renditions separately."""
    runs = demo_runs()
    natural = runs[0].shifts_of("natural")
    rows = []
    for run in runs:
        synthetic = run.shifts_of("synthetic")
        for model in MODELS:
            sets = [run.models[model][name] for name in (run.reference, *natural)]
            cells = [_per_cent(r.accuracy, r.interval) for r in sets]
            means = [f"{100 * (run.mean_accuracy(model, some) or 0):.1f}" for some in (natural, synthetic)]
            rows.append((str(run.seed), NAMES[model], *cells, *means))
    header = ("seed", "model", "reference", *natural, f"mean of the {len(natural)}", "mean of corruptions")
    grouped = [name for name in natural if runs[0].models["ensemble"][name].groups]
    groups = [
        (str(run.seed), NAMES[model], *(_groups(run, model, name) for name in grouped))
        for run in runs
        for model in MODELS
    ]
    apart = _markdown(("seed", "model", *grouped), groups)
    return f"{_markdown(header, rows)}\n\nSeen / withheld renditions:\n\n{apart}"


def regime_table() -> str:
    """The candidates that were tried on the development suite."""
    rows = []
    for entry in read_json(BENCHMARKS / "tune_mixing.json"):
        cells = [
            f"{entry[model][what]:.1f}"
            for model in ("fine_tuned", "ensemble")
            for what in ("colour", "mean of natural", "mean of synthetic")
        ]
        rows.append((entry["candidate"], *cells))
    what = ("reference", "natural", "corruptions")
    header = ("", *(f"fine-tuned: {w}" for w in what), *(f"alpha 0.5: {w}" for w in what))
    return _markdown(header, rows)


def robustness_tables() -> str:
    """Every augmentation, model and seed, and the paired differences to fine-tuning without one."""
    entries = read_json(RESULTS / "robustness.json")
    rows, differences = [], []
    for augmentation, model in dict.fromkeys((e["augmentation"], e["model"]) for e in entries):
        some = [e for e in entries if (e["augmentation"], e["model"]) == (augmentation, model)]
        rows.append((augmentation, model, *(" / ".join(cells) for cells in zip(*map(_numbers, some), strict=True))))
        if augmentation != "none":
            cells = zip(*([_difference(e["minus none"][w]) for w in e["minus none"]] for e in some), strict=True)
            differences.append((augmentation, model, *("<br>".join(cell) for cell in cells)))
    header = ("augmentation", "model", "alpha", "reference", "natural shifts", "corruptions", *_ERRORS)
    full = [
        (e["augmentation"], e["model"], str(e["seed"]), *(_per_cent(*value) for value in _values(e))) for e in entries
    ]
    return "\n\n".join(
        [
            "Seeds 0 / 1 / 2, in per cent:",
            _markdown(header, rows),
            "Minus fine-tuning without augmentation, same seed and model, in points (one line per seed; 95 % paired "
            "bootstrap intervals that resample whole classes):",
            _markdown(("augmentation", "model", "reference", "natural shifts", "corruptions"), differences),
            "<details><summary>Every seed with its intervals</summary>",
            _markdown(("augmentation", "model", "seed", "reference", "natural shifts", "corruptions"), full),
            "</details>",
        ]
    )


_ERRORS = ("calibration error, reference", "natural", "corruptions")


def _numbers(entry: dict[str, Any]) -> tuple[str, ...]:
    errors = [entry["sets"]["reference"]["calibration_error"]]
    errors += [entry["means"][what]["calibration_error"] for what in ("natural", "corruptions")]
    numbers = [*(value for value, _ in _values(entry)), *errors]
    return (f"{entry['alpha']:g}", *(f"{100 * number:.1f}" for number in numbers))


def _values(entry: dict[str, Any]) -> list[tuple[float, Sequence[float]]]:
    reference, means = entry["sets"]["reference"], entry["means"]
    return [
        (reference["accuracy"], reference["interval"]),
        *((means[what]["mean"], means[what]["interval"]) for what in ("natural", "corruptions")),
    ]


def _difference(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{signed_points(entry['mean'])} ({signed_points(low)} to {signed_points(high)})"


def speed_table() -> str:
    """The time that mixing takes, as medians and ratios within one run of the benchmark."""
    results = read_json(BENCHMARKS / "mixing.json")
    targets = [
        (t["ours"], t["against"], f"{t['at_most']:g}", f"{t['ratio']:.2f}", "yes" if t["met"] else "no")
        for t in results["targets"]
    ]
    parts = [_markdown(("ours", "against", "at most", "measured", "met"), targets)]
    for name, table in results["tables"].items():
        rows = [
            (
                contender,
                f"{entry['milliseconds']:.1f}",
                f"{entry['of_floor']:.2f}",
                _against(entry, "torchvision CutMix"),
            )
            for contender, entry in table.items()
        ]
        header = ("", "ms per batch", "times the floor", "times torchvision's CutMix")
        parts.append(f"{name}:\n\n{_markdown(header, rows)}")
    return "\n\n".join(parts)


def _against(entry: dict[str, Any], other: str) -> str:
    return f"{entry['of'][other]:.2f}" if other in entry.get("of", {}) else ""


def merge_tables() -> str:
    """Time and memory of merging files, compared with the floor, a plain script and mergekit."""
    results = read_json(BENCHMARKS / "merge.json")
    targets = [
        (t["size"], t["what"], _target(t), f"{t['reached']:g}", "yes" if t["met"] else "no") for t in results["targets"]
    ]
    parts = [_markdown(("checkpoints", "what", "target", "measured", "met"), targets)]
    for size, entry in results["sizes"].items():
        seconds, memory = entry["median_seconds"], entry["memory_mb"]["peak_anonymous"]
        rows = [
            (name, f"{took:.1f}", f"{memory[name]:.0f}" if name in memory and "imports" not in name else "")
            for name, took in seconds.items()
        ]
        parts.append(f"Two checkpoints of {size}, {entry['rounds']} rounds:\n\n{_markdown(_MERGE_HEADER, rows)}")
    return "\n\n".join(parts)


_MERGE_HEADER = ("", "seconds, median", "peak anonymous memory, MB")


def _target(entry: dict[str, Any]) -> str:
    return f"at most {entry['at_most']:g}" if "at_most" in entry else f"at least {entry['at_least']:g}"


def path_tables() -> str:
    """The time of the alpha path, and of an ensemble at inference."""
    path, inference = read_json(BENCHMARKS / "path.json"), read_json(BENCHMARKS / "inference.json")
    rows = [(name, f"{path['seconds'][name]:.1f}", description) for name, description in _PATH_CONTENDERS.items()]
    summary = (
        f"{path['images']:,} JPEGs of 256 px, {path['alphas']} alphas, medians of {path['rounds']} rounds: the path "
        f"takes {path['path_of_floor']:.2f} times the floor (the target is at most {path['targets'][0]['at_most']:g}) "
        f"and {path['path_of_loop']:.2f} times the loop; its accuracies are "
        f"{'the same' if path['accuracies_equal_the_loop_s'] else 'NOT the same'}, to the last image."
    )
    costs = [
        (table, name, f"{entry['milliseconds']:.2f}", f"{entry['of_fine_tuned']:.3f}")
        for table, entries in inference["tables"].items()
        for name, entry in entries.items()
    ]
    header = ("device and batch", "model", "ms per batch", "times the fine-tuned model")
    return f"{summary}\n\n{_markdown(('', 'seconds', 'what it does'), rows)}\n\n{_markdown(header, costs)}"


_PATH_CONTENDERS = {
    "path": "`sweep_alpha`",
    "floor": "decodes once, then runs one forward pass per alpha",
    "loop": "runs one evaluation loop per alpha and decodes each time",
}


def strong_edge_tables() -> str:
    """The verdict and the tables of the strong-edge study, seed by seed."""
    parts = []
    for path in sorted(RESULTS.glob("strong-edge-seed-*.json")):
        study = from_json(StrongEdgeStudy, read_json(path))
        verdict = "\n".join(f"- {sentence}" for sentence in strong_edge_verdict(study).splitlines())
        parts += [f"### Seed {study.seed}", verdict]
        tables = [clean_table(study)]
        for kind in window_kinds(study):
            tables += [table for table in (window_table(study, *kind), contrast_table(study, *kind)) if table]
        parts += [f"{table.title}:\n\n{_of_table(table)}" for table in tables]
    return "\n\n".join(parts)


# Each rule's name, and as choose_alpha takes it.
RULES: dict[str, tuple[str, float]] = {
    "fixed": ("fixed", 0.0),
    "reference": ("reference", 0.0),
    "tolerance, 0.5 points": ("tolerance", 0.005),
    "tolerance, 1 point": ("tolerance", 0.01),
    "tolerance, 2 points": ("tolerance", 0.02),
}
SHIFTS = "mean of the 5 shifts"


def paper_sweeps() -> dict[tuple[str, str], PathRecord]:
    """WiSE-FT's published alpha sweeps; ImageNet's test column stands for the validation split as well."""
    with (RESULTS / "wiseft_alpha_sweeps.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    points: dict[tuple[str, str], list[PathPoint]] = {}
    for row in rows:
        accuracy = {"ImageNet": float(row["ImageNet"]) / 100, SHIFTS: float(row["avg_shifts"]) / 100}
        point = PathPoint(float(row["alpha"]), accuracy["ImageNet"], accuracy, {})
        points.setdefault((row["model"], row["tuning"]), []).append(point)
    return {key: PathRecord("ImageNet", (SHIFTS,), tuple(sweep)) for key, sweep in points.items()}


def choosing_tables() -> str:
    """The choice of every rule on every sweep of the paper, and its loss to the best alpha of each column."""
    rows, lost = [], {name: list[tuple[float, ...]]() for name in RULES}
    for (model, tuning), path in paper_sweeps().items():
        oracle = path.oracle()
        best = {name: path.at(alpha).accuracy[name] for name, alpha in oracle.items()}
        for name, (rule, tolerance) in RULES.items():
            point = path.at(choose_alpha(path, rule, tolerance=tolerance))
            lost[name].append(tuple(point.accuracy[column] - best[column] for column in best))
            accuracies = [per_cent(value) for value in point.accuracy.values()]
            rows.append((model, tuning, name, f"{point.alpha:g}", *accuracies, *map(signed_points, lost[name][-1])))
        cells = [f"{per_cent(best[column])} at {oracle[column]:g}" for column in best]
        rows.append((model, tuning, "oracle (reads the column)", "", *cells, "", ""))
    header = ("model", "tuning", "rule", "alpha", "ImageNet", SHIFTS, "loss on ImageNet", "loss on the shifts")
    means = []
    for name, entries in lost.items():
        columns = list(zip(*entries, strict=True))
        mean, worst = ([signed_points(by(column)) for column in columns] for by in (statistics.mean, min))
        means.append((name, *mean, *worst))
    over = ("rule", "ImageNet, mean", "shifts, mean", "ImageNet, worst", "shifts, worst")
    return (
        f"Loss to the best alpha of each column, over the four sweeps, in points:\n\n{_markdown(over, means)}\n\n"
        f"Sweep by sweep, in per cent and points:\n\n{_markdown(header, rows)}"
    )


def step_tables() -> str:
    """The time of a fine-tuning step, compared with the bare loop."""
    results = read_json(BENCHMARKS / "finetune.json")
    cpu = results["cpu"]
    summary = (
        f"On {results['machine']}, tiny model, batch 128: our step takes {cpu['ratio']:.2f} times the bare loop "
        f"({cpu['images_per_second']:,} images per second; the target is at most 1.10), the median of {cpu['rounds']} "
        "alternating rounds. With other settings, against the same bare end-to-end loop, one round:"
    )
    rows = [(name, f"{ratio:.2f}") for name, ratio in cpu["other settings"].items()]
    parts = [summary, _markdown(("setting", "times the bare loop"), rows)]
    if gpu := results["gpu"]:
        cards = [
            (name, f"{1 / e['ratio']:.1f}", f"{e['images_per_second']:,}", f"{100 * e['share_of_matrix_rate']:.0f} %")
            for name, e in gpu.items()
            if isinstance(e, dict)
        ]
        header = ("model", "times as fast as the bare float32 loop", "images per second", "of the GPU's matrix rate")
        parts += [f"On one {gpu['card']}:", _markdown(header, cards)]
    return "\n\n".join(parts)


def study_tables(name: str) -> str:
    """The verdict and spreads of a study, over all finished runs and over those that learned, and every run."""
    study = study_from_json(read_json(RESULTS / f"study-{name}.json"))
    parts = [study_verdict(study), *_spread_of(study)]
    learned, lost = _learned(study)
    if lost:
        heading = (
            f"Decided afterwards: without the settings that made the validation accuracy worse ({', '.join(lost)}):"
        )
        parts += [heading, study_verdict(learned), *_spread_of(learned)]
    return "\n\n".join([*parts, *_folded(study_table(study))])


def _spread_of(study: StudyRecord) -> list[str]:
    table = spread_table(study)
    return [_titled(table)] if table else []


def _learned(study: StudyRecord) -> tuple[StudyRecord, list[str]]:
    """The study without configurations of which a run validates below zero-shot, and their names; reads no shift."""
    paths = [(member.configuration, member.path) for member in study.members]
    lost = list(dict.fromkeys(name for name, path in paths if path.at(1).validation < path.at(0).validation))
    members = tuple(member for member in study.members if member.configuration not in lost)
    return replace(study, members=members, spreads=measure_spreads(members, study.reference, study.averaged)), lost


def recipe_tables() -> str:
    """The recipes at equal accuracy on the reference, and every run."""
    study = study_from_json(read_json(RESULTS / "study-recipes.json"))
    return "\n\n".join([_titled(equal_reference_table(study, "end-to-end")), *_folded(study_table(study))])


def tuning_table() -> str:
    """The validation accuracies by which the learning rates of the recipes were chosen."""
    study = study_from_json(read_json(RESULTS / "study-tuning.json"))
    rows = [(m.configuration, f"{100 * m.path.at(1).validation:.1f}") for m in study.members]
    return _markdown(("recipe and learning rate", "validation accuracy, development suite"), rows)


def _titled(table: Table) -> str:
    return f"{table.title}:\n\n{_of_table(table)}"


def _folded(table: Table) -> list[str]:
    return [f"<details><summary>{table.title}</summary>", _of_table(table), "</details>"]


def memory_table() -> str:
    """The peak memory of the diagnoses of saved predictions."""
    results = read_json(BENCHMARKS / "diagnosis.json")
    rows = [
        (name, f"{entry['peak_mb']:.0f}", f"{entry['seconds']:.0f}")
        for name, entry in results.items()
        if isinstance(entry, dict)
    ]
    rises = {name.split(":")[0]: value for name, value in results.items() if "MB more at 1" in name}
    more = " and ".join(f"{value:.0f} MB ({activity})" for activity, value in rises.items())
    limit = results["target, MB more at most"]
    summary = f"With ten times as many images, the peak rises by {more}. The target is a rise of at most {limit} MB."
    return f"{_markdown(('', 'peak memory, MB', 'seconds'), rows)}\n\n{summary}"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"summary": summary_table},
    "docs/results.md": {"results": demo_tables},
    "docs/mixing.md": {"regime": regime_table, "robustness": robustness_tables, "speed": speed_table},
    "docs/choosing-alpha.md": {"choosing-alpha": choosing_tables, "path": path_tables},
    "docs/merging.md": {"merging": merge_tables},
    "docs/fine-tuning.md": {"step": step_tables},
    "docs/hyper-parameters.md": {
        "hyperparameters": functools.partial(study_tables, "hyperparameters"),
        "tuning": tuning_table,
        "recipes": recipe_tables,
    },
    "docs/strong-edge.md": {"strong-edge": strong_edge_tables},
    "docs/diagnosis.md": {
        "claims": functools.partial(claim_sections, RESULTS, BENCHMARKS),
        "beyond-half": functools.partial(beyond_half, BENCHMARKS),
        "memory": memory_table,
    },
}


def updated(page: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The text of a page with regenerated blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, block in blocks.items():
        start, end = f"<!-- {name}: python tools/results.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{block()}\n{end}{rest.split(end)[1]}"
    return text


def take(folder: Path) -> None:
    """Copies the committed part of a run: a demo, a study, or a strong-edge study without its single windows."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    if (folder / "summary.json").is_file():
        seed = read_json(folder / "summary.json")["seed"]
        shutil.copyfile(folder / "summary.json", RESULTS / f"demo-seed-{seed}.json")
        _take_diagnosis(folder, seed)
        return
    if (folder / "study.json").is_file():
        shutil.copyfile(folder / "study.json", RESULTS / f"study-{folder.name}.json")
        shutil.copyfile(folder / "figures" / "study.png", ROOT / "docs" / "images" / f"{folder.name}.png")
        return
    study = read_json(folder / "strong_edge.json")
    study["models"] = {model: {"clean": windows["clean"]} for model, windows in study["models"].items()}
    write_json(RESULTS / f"strong-edge-seed-{study['seed']}.json", study)
    if study["seed"] == 0:
        for figure in (folder / "figures").glob("*.png"):
            shutil.copyfile(figure, ROOT / "docs" / "images" / figure.name)


def _take_diagnosis(folder: Path, seed: int) -> None:
    """Copies the diagnosis of a demo, without what the pages do not show, and its figures."""
    if (folder / "diagnosis.json").is_file():
        diagnosis = read_json(folder / "diagnosis.json")
        diagnosis |= {"confidence": [], "by_class": [], "movement": [], "strong_edge": None}
        write_json(RESULTS / f"diagnosis-seed-{seed}.json", diagnosis)
        if seed == 0:
            for name in ("overrides", "connectivity", "layers-sketch", "plane-sketch"):
                if (figure := folder / "figures" / f"{name}.png").is_file():
                    shutil.copyfile(figure, ROOT / "docs" / "images" / f"diagnosis-{name}.png")


def _groups(run: RunRecord, model: str, name: str) -> str:
    groups = run.models[model][name].groups
    return " / ".join(_per_cent(groups[g].accuracy, groups[g].interval) for g in ("seen", "withheld"))


def _per_cent(value: float, interval: Sequence[float]) -> str:
    return f"{100 * value:.1f} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def _of_table(table: Table) -> str:
    return _markdown(table.header, table.rows) + (f"\n\n{table.note}" if table.note else "")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _differing() -> Iterator[str]:
    for page, blocks in PAGES.items():
        if updated(page, blocks) != (ROOT / page).read_text(encoding="utf-8"):
            yield page


if __name__ == "__main__":
    if "--take" in sys.argv:
        for folder in map(Path, sys.argv[sys.argv.index("--take") + 1 :]):
            take(folder)
    if "--check" in sys.argv:
        pages = list(_differing())
        sys.exit(f"{', '.join(pages)} differ from the results; run `python tools/results.py`" if pages else 0)
    for page, blocks in PAGES.items():
        (ROOT / page).write_text(updated(page, blocks), encoding="utf-8")
