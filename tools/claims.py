"""The claims of the papers with their numbers on the emoji suite, seed by seed, as Markdown.

``python tools/results.py`` imports this module and writes the sections into docs/diagnosis.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.codec import from_json
from shiftproof.records.comparisons import ConnectivityRecord, Measured
from shiftproof.records.diagnosis import HALVES, DiagnosisRecord, DifferenceRecord, PairRecord
from shiftproof.records.summaries import study_from_json
from shiftproof.records.windows import StrongEdgeStudy, WindowSummary
from shiftproof.report.studies import study_verdict
from shiftproof.report.tables import per_cent, signed_points, with_interval
from shiftproof.storage import read_json

Row = tuple[str, ...]


def claim_sections(results: Path, benchmarks: Path) -> str:
    """The sections of all claims, in the order of the paper's argument."""
    runs = [from_json(DiagnosisRecord, read_json(path)) for path in sorted(results.glob("diagnosis-seed-*.json"))]
    seeds = " / ".join(str(run.seed) for run in runs)
    parts = [
        f"Each cell has one line per seed ({seeds}). The 95 % intervals in brackets resample drawings, with "
        f"all views of a "
        f"drawing together.",
        *_robustness(runs),
        *_diversity(runs),
        *_overrides(runs),
        *_connectivity(runs),
        *_effective(runs),
        "### The hyper-parameters matter less for the ensemble",
        study_verdict(study_from_json(read_json(results / "study-hyperparameters.json"))),
        *_strong_edges(results),
        "### No extra cost at inference",
        _cost(read_json(benchmarks / "inference.json")),
    ]
    return "\n\n".join(parts)


def beyond_half(benchmarks: Path) -> str:
    """The candidates for beating alpha 0.5, and the results of the two chosen ones on the task."""
    results = read_json(benchmarks / "beyond_half.json")
    best = sorted((e for e in results["candidates"] if e["allowed"]), key=lambda e: -e["mean"])
    rows = [
        (
            e["candidate"],
            f"{e['reference']:+.2f}",
            f"{e['mean']:+.2f}",
            str(e["models at inference"]),
            str(e["fine-tunings"]),
        )
        for e in best[:12]
    ]
    header = ("candidate", "reference", "mean of the natural shifts", "models at inference", "fine-tunings")
    parts = [
        "Points above alpha 0.5 on the development folds: the twelve best candidates of those that lose at most "
        f"{results['settings']['allowed loss on the reference']} points on the reference on either fold. "
        f"{len(results['candidates'])} candidates were tried. The choice was made by these numbers, so they "
        f"have no intervals.",
        _markdown(header, rows),
        "Points above alpha 0.5 on the three seeds of the task, which was run once:",
    ]
    sets = ("reference", "sketch", "painting", "monochrome", "clutter", "mean", "mean of synthetic")
    judged = []
    for what, entry in results["judgement"].items():
        judged.append((f"{what}: {entry['candidate']}, together", *(_points(entry["seeds together"][s]) for s in sets)))
        for seed, points in enumerate(entry["by seed"]):
            judged.append((f"seed {seed}", *(_points(points[s]) for s in sets)))
    return "\n\n".join([*parts, _markdown(("candidate", *sets), judged)])


def _robustness(runs: Sequence[DiagnosisRecord]) -> list[str]:
    natural = {run.seed: _natural(run) for run in runs}

    def moved(first: str, second: str, on_reference: bool) -> str:
        records = [
            run.difference(first, second, *((run.reference,) if on_reference else natural[run.seed])) for run in runs
        ]
        return _stacked(with_interval(None if r is None else r.difference, signed_points) for r in records)

    header = ("points", "reference", "mean of the natural shifts")
    pairs = (("fine_tuned", "zero_shot"), ("ensemble", "fine_tuned"), ("ensemble", "zero_shot"))
    rows = [
        (
            f"{_shown(first)} − {_shown(second)}",
            moved(first, second, True),
            moved(first, second, False),
        )
        for first, second in pairs
    ]
    lost = _count(runs, lambda run: _clear(run.difference("fine_tuned", "zero_shot", *_natural(run)), below=True))
    holding = _count(runs, lambda run: _reaches_zero(run.difference("ensemble", "fine_tuned", run.reference)))
    regained = _count(runs, lambda run: _clear(run.difference("ensemble", "fine_tuned", *_natural(run))))
    whole = _count(runs, lambda run: not _clear(run.difference("ensemble", "zero_shot", *_natural(run)), below=True))
    return [
        "### Fine-tuning loses robustness; alpha 0.5 keeps both",
        f"Fine-tuning clearly loses accuracy on the mean of the shifts in {lost} seeds. Alpha 0.5 is not clearly below "
        f"fine-tuned on the reference in {holding}, clearly above it on the shifts in {regained}, and not "
        f"clearly below zero-shot there in "
        f"{whole}.",
        _markdown(header, rows),
    ]


def _diversity(runs: Sequence[DiagnosisRecord]) -> list[str]:
    rows, more, among = [], 0, 0
    for name in _reference_and_natural(runs[0]):
        cells = []
        for first, second in (("zero_shot", "fine_tuned"), HALVES):
            pairs = [run.pair(first, second, name) for run in runs]
            cells += [_stacked(_of_pair(p, get) for p in pairs) for get in (_diverse, _kappa, _alike)]
        contrasts = [contrast.difference for run in runs for contrast in run.diversity if contrast.set == name]
        among += len(contrasts)
        more += sum(contrast.interval is not None and contrast.interval[0] > 0 for contrast in contrasts)
        cells.append(_stacked(with_interval(contrast, signed_points) for contrast in contrasts))
        rows.append((name, *cells))
    measures = ("diversity, %", "1 − kappa", "CKA")
    header = ("set", *(f"zero-shot, fine-tuned: {m}" for m in measures), *(f"two halves: {m}" for m in measures))
    header += ("diversity, difference in points",)
    return [
        "### Zero-shot and fine-tuned are more diverse than two fine-tuned models",
        f"Two models fine-tuned on disjoint halves of the reference are clearly less diverse in {more} of {among} "
        "comparisons, one per set and seed (the last column, paired image by image).",
        _markdown(header, rows),
    ]


def _overrides(runs: Sequence[DiagnosisRecord]) -> list[str]:
    rows = []
    for name in _reference_and_natural(runs[0]):
        overrides = [run.overrides[name] for run in runs]
        cells = [
            _stacked(with_interval(getattr(override, who)) for override in overrides)
            for who in ("zero_shot", "fine_tuned", "neither")
        ]
        pairs = [run.pair("zero_shot", "fine_tuned", name) for run in runs]
        wider = _stacked(_of_pair(pair, lambda p: p.agreement.margin_difference, _plain) for pair in pairs)
        lead = _stacked(with_interval(override.lead, signed_points) for override in overrides)
        rows.append(
            (name, *cells, lead, wider, _stacked(with_interval(override.beyond_both) for override in overrides))
        )
    reference = runs[0].reference
    on_reference = _count(runs, lambda run: _sure(run.overrides[reference].lead, below=True))
    shifts = [name for name in _reference_and_natural(runs[0]) if name != reference]
    under = {
        name: _count(runs, lambda run, name=name: _sure(run.overrides[name].lead))  # type: ignore[misc]
        for name in shifts
    }
    counts = ", ".join(f"{name} {count}" for name, count in under.items())
    header = (
        "set",
        "zero-shot prevails, %",
        "fine-tuned prevails, %",
        "neither, %",
        "zero-shot's lead, points",
        "margin difference",
        "gained beyond both, %",
    )
    return [
        "### Zero-shot overrides under shift, fine-tuned on the reference",
        f"Fine-tuned clearly prevails on the reference in {on_reference} seeds; zero-shot clearly prevails under "
        f"shift in: {counts} "
        "(the interval of the lead excludes 0).",
        _markdown(header, rows),
    ]


def _connectivity(runs: Sequence[DiagnosisRecord]) -> list[str]:
    records = [record for run in runs for record in run.connectivity]
    failing = [record.set for record in records if record.clearly_under]
    touching = [record.set for record in records if not record.observation_1 and not record.clearly_under]
    better = [r.set for r in records if r.gain_interval is not None and r.gain_interval[0] > 0]
    inner = sum(len(record.alphas) - 2 for record in records)
    within = f"; on {len(touching)} more, some alpha lies below it, but within its interval ({', '.join(touching)})"
    parts = [
        "### The path is linearly connected",
        f"There are {len(records)} paths, one per set and seed. Observation 1, that no alpha lies below the "
        f"line between "
        f"the ends, clearly fails on {len(failing)} ({', '.join(failing) or 'none'}; each of {inner} alphas "
        f"has its own "
        f"interval, so a few lie there by chance){within if touching else ''}. Observation 2, that some alpha "
        f"lies above "
        f"both ends, clearly holds on {len(better)}, at the alpha that is best on the set itself. For paths "
        f"between other "
        "models, the table gives the lowest height above the line between the ends, in points:",
    ]
    rows = [
        (str(run.seed), path.name, *(_lowest(record) for record in path.connectivity))
        for run in runs
        for path in run.other_paths
    ]
    sets = [record.set for record in runs[0].other_paths[0].connectivity] if runs[0].other_paths else []
    return [*parts, _markdown(("seed", "path between", *sets), rows)] if rows else parts


def _effective(runs: Sequence[DiagnosisRecord]) -> list[str]:
    if not any(run.baselines for run in runs):
        return []
    shifts = [name for name in _reference_and_natural(runs[0]) if name != runs[0].reference]
    rows = []
    for model in ("zero_shot", "fine_tuned", "ensemble"):
        cells = []
        for shift in shifts:
            records = [next((r for r in run.robustness if (r.model, r.shift) == (model, shift)), None) for run in runs]
            cells.append(_stacked(with_interval(None if r is None else r.effective, signed_points) for r in records))
        rows.append((_shown(model), *cells))
    known, reference = runs[0].baselines, runs[0].reference
    most = {name: per_cent(max(known[name])) for name in (reference, *shifts)}
    return [
        "### Effective robustness",
        f"Points above the accuracy that {len(known[reference])} networks trained on the reference alone "
        f"(with the first "
        "seed) predict by a line in logit space, where an accuracy of 0 counts as half an image. These "
        "networks reach at "
        f"most {most.pop(reference)} % on the reference and "
        f"{', '.join(f'{value} % on {name}' for name, value in most.items())}. For models beyond that, the line is "
        "extrapolated, and most of their accuracy lies above it.",
        _markdown(("model", *shifts), rows),
    ]


def _strong_edges(results: Path) -> list[str]:
    studies = [from_json(StrongEdgeStudy, read_json(path)) for path in sorted(results.glob("strong-edge-seed-*.json"))]
    pairs = [(c.model, c.second or "") for c in _hard(studies[0]) if "smoothmix" in (c.second or "")]
    measures = {
        "map in the window": "window_share",
        "newly drawn there": "share_drawn",
        "accuracy lost": "accuracy_drop",
    }
    means_of = {(c.model, c.second, n): c.means for n, study in enumerate(studies) for c in _hard(study)}
    rows = []
    for first, second in pairs:
        pair_means = [means_of[first, second, n] for n in range(len(studies))]
        cells = (_stacked(_mean_points(means[measure]) for means in pair_means) for measure in measures.values())
        rows.append((f"{first} − {second}", *cells))
    intervals = [
        means_of[first, second, n]["window_share"].interval for first, second in pairs for n in range(len(studies))
    ]
    more, less = (sum(1 for i in intervals if i and (i[0] > 0 if up else i[1] < 0)) for up in (True, False))
    return [
        "### Networks look at hard edges, not at soft ones",
        f"Of {len(intervals)} comparisons ({len(pairs)} pairs of networks, {len(studies)} seeds each, with hard "
        f"windows away from the object), the network trained with hard edges attends to the window clearly more than "
        f"the one trained with soft edges in {more}, and clearly less in {less}. The table gives differences "
        f"in points; "
        "[the study](strong-edge.md) has more.",
        _markdown(("networks", *measures), rows),
    ]


def _hard(study: StrongEdgeStudy) -> list[WindowSummary]:
    return [c for c in study.contrasts if (c.place, c.edge) == ("away", 0)]


def _mean_points(mean: MeanRecord) -> str:
    return "–" if mean.value is None else with_interval(Measured(mean.value, mean.interval), signed_points)


def _cost(inference: dict[str, Any]) -> str:
    tables = inference["tables"].items()
    ratios = [f"{name}: {e['ensemble']['of_fine_tuned']:.3f}" for name, e in tables if "ensemble" in e]
    return (
        f"The ensemble is one model and needs one pass. Its time as a multiple of the fine-tuned model's, the "
        f"median of "
        f"{inference['rounds']} rounds (`python benchmarks/bench_inference.py`), is: {'; '.join(ratios)}."
    )


def _natural(run: DiagnosisRecord) -> tuple[str, ...]:
    return tuple(name for name in run.shifts if run.kinds[name] == "natural")


def _reference_and_natural(run: DiagnosisRecord) -> tuple[str, ...]:
    return (run.reference, *_natural(run))


def _clear(record: DifferenceRecord | None, *, below: bool = False) -> bool:
    return _sure(None if record is None else record.difference, below=below)


def _sure(measured: Measured | None, *, below: bool = False) -> bool:
    interval = None if measured is None else measured.interval
    return interval is not None and (interval[1] < 0 if below else interval[0] > 0)


def _reaches_zero(record: DifferenceRecord | None) -> bool:
    return record is not None and not _clear(record, below=True)


def _count(runs: Sequence[DiagnosisRecord], holds: Callable[[DiagnosisRecord], bool]) -> str:
    return f"{sum(map(holds, runs))} of {len(runs)}"


def _of_pair(
    pair: PairRecord | None, get: Callable[[PairRecord], Measured | None], form: Callable[[float], str] | None = None
) -> str:
    return with_interval(None if pair is None else get(pair), form or (per_cent if get is _diverse else _plain))


def _diverse(pair: PairRecord) -> Measured | None:
    return pair.agreement.prediction_diversity


def _kappa(pair: PairRecord) -> Measured | None:
    return pair.agreement.kappa_complement


def _alike(pair: PairRecord) -> Measured | None:
    return None if pair.cka is None else pair.cka.best


def _plain(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _lowest(record: ConnectivityRecord) -> str:
    return with_interval(record.lowest[1], signed_points)


def _shown(model: str) -> str:
    return {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned", "ensemble": "alpha 0.5"}[model]


def _points(entry: Sequence[float]) -> str:
    value, low, high = (signed_points(number / 100) for number in entry)
    return f"{value} ({low} to {high})"


def _stacked(cells: Any) -> str:
    return "<br>".join(cells)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
