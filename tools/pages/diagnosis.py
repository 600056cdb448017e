"""The claims of the papers with their numbers on the emoji suite, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pages import strong_edge
from pages.markdown import markdown, out_of, stacked
from pages.sources import Sources
from shiftproof.records.comparisons import ConnectivityRecord, LossRecord, Measured
from shiftproof.records.diagnosis import HALVES, DiagnosisRecord, DifferenceRecord, PairRecord
from shiftproof.report.studies import study_verdict
from shiftproof.report.tables import per_cent, signed_points, with_interval


def claim_sections(sources: Sources) -> str:
    """The sections of all claims, in the order of the paper's argument."""
    runs = sources.diagnoses()
    seeds = " / ".join(str(run.seed) for run in runs)
    parts = [
        f"Each cell has one line per seed ({seeds}). The 95 % intervals in brackets resample drawings, with all views "
        "of a drawing together.",
        *_robustness(runs),
        *_diversity(runs),
        *_overrides(runs),
        *_connectivity(runs),
        *_effective(runs),
        "### The hyper-parameters matter less for the ensemble",
        study_verdict(sources.study("hyperparameters")),
        *strong_edge.claim_section(sources),
        "### No extra cost at inference",
        _cost(sources.benchmark("inference")),
    ]
    return "\n\n".join(parts)


def _robustness(runs: Sequence[DiagnosisRecord]) -> list[str]:
    natural = {run.seed: natural_of(run) for run in runs}

    def moved(first: str, second: str, on_reference: bool) -> str:
        records = [
            run.difference(first, second, *((run.reference,) if on_reference else natural[run.seed])) for run in runs
        ]
        return stacked(with_interval(None if r is None else r.difference, signed_points) for r in records)

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
    lost = count_of(runs, lambda run: is_clear(run.difference("fine_tuned", "zero_shot", *natural_of(run)), below=True))
    below = count_of(runs, lambda run: is_clear(run.difference("ensemble", "fine_tuned", run.reference), below=True))
    regained = count_of(runs, lambda run: is_clear(run.difference("ensemble", "fine_tuned", *natural_of(run))))
    behind = count_of(runs, lambda run: is_clear(run.difference("ensemble", "zero_shot", *natural_of(run)), below=True))
    return [
        "### Fine-tuning loses robustness; alpha 0.5 keeps both",
        f"Fine-tuning clearly loses accuracy on the mean of the shifts in {lost} seeds. Alpha 0.5 is clearly below "
        f"fine-tuned on the reference in {below}, clearly above it on the shifts in {regained}, and clearly below "
        f"zero-shot there in {behind}.",
        markdown(header, rows),
    ]


def _diversity(runs: Sequence[DiagnosisRecord]) -> list[str]:
    rows, more, among = [], 0, 0
    for name in sets_of(runs[0]):
        cells = []
        for first, second in (("zero_shot", "fine_tuned"), HALVES):
            pairs = [run.pair(first, second, name) for run in runs]
            cells += [stacked(_of_pair(p, get) for p in pairs) for get in (_diverse, _kappa, _alike)]
        contrasts = [contrast.difference for run in runs for contrast in run.diversity if contrast.set == name]
        among += len(contrasts)
        more += sum(contrast.interval is not None and contrast.interval[0] > 0 for contrast in contrasts)
        cells.append(stacked(with_interval(contrast, signed_points) for contrast in contrasts))
        rows.append((name, *cells))
    measures = ("diversity, %", "1 − kappa", "CKA")
    header = ("set", *(f"zero-shot, fine-tuned: {m}" for m in measures), *(f"two halves: {m}" for m in measures))
    header += ("diversity, difference in points",)
    return [
        "### Zero-shot and fine-tuned are more diverse than two fine-tuned models",
        f"Two models fine-tuned on disjoint halves of the reference are clearly less diverse in {more} of {among} "
        "comparisons, one per set and seed (the last column, paired image by image).",
        markdown(header, rows),
    ]


def _overrides(runs: Sequence[DiagnosisRecord]) -> list[str]:
    rows = []
    for name in sets_of(runs[0]):
        overrides = [run.overrides[name] for run in runs]
        cells = [
            stacked(with_interval(getattr(override, who)) for override in overrides)
            for who in ("zero_shot", "fine_tuned", "neither")
        ]
        pairs = [run.pair("zero_shot", "fine_tuned", name) for run in runs]
        wider = stacked(_of_pair(pair, lambda p: p.agreement.margin_difference, _plain) for pair in pairs)
        lead = stacked(with_interval(override.lead, signed_points) for override in overrides)
        rows.append((name, *cells, lead, wider, stacked(with_interval(override.beyond_both) for override in overrides)))
    reference = runs[0].reference
    on_reference = count_of(runs, lambda run: excludes_zero(run.overrides[reference].lead, below=True))
    shifts = [name for name in sets_of(runs[0]) if name != reference]
    under = {
        name: count_of(runs, lambda run, name=name: excludes_zero(run.overrides[name].lead))  # type: ignore[misc]
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
        markdown(header, rows),
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
    others = [(run, path) for run in runs for path in run.other_paths]
    sets = [record.set for record in others[0][1].connectivity] if others else []
    heights = [(str(run.seed), path.name, *map(_lowest, path.connectivity)) for run, path in others]
    ends = [(str(run.seed), path.name, *map(_ends, path.connectivity)) for run, path in others]
    if others:
        parts.append(markdown(("seed", "path between", *sets), heights))
    if others and all(record.ends for _, path in others for record in path.connectivity):
        parts += ["The accuracies of the two ends, in per cent:", markdown(("seed", "path between", *sets), ends)]
    elif others:
        losses = [(str(run.seed), path.name, *map(_end_losses, path.losses)) for run, path in others]
        parts += [
            "How good the two ends are, as their mean loss in nats (these diagnoses did not record accuracies, and a "
            "model that guesses has the logarithm of the number of classes):",
            markdown(("seed", "path between", *sets), losses),
        ]
    return parts


def _end_losses(record: LossRecord) -> str:
    return f"{record.loss[0].value:.2f} and {record.loss[-1].value:.2f}"


def _effective(runs: Sequence[DiagnosisRecord]) -> list[str]:
    if not any(run.baselines for run in runs):
        return []
    shifts = [name for name in sets_of(runs[0]) if name != runs[0].reference]
    rows = []
    for model in ("zero_shot", "fine_tuned", "ensemble"):
        cells = []
        for shift in shifts:
            records = [next((r for r in run.robustness if (r.model, r.shift) == (model, shift)), None) for run in runs]
            cells.append(stacked(with_interval(None if r is None else r.effective, signed_points) for r in records))
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
        markdown(("model", *shifts), rows),
    ]


def _cost(inference: dict[str, Any]) -> str:
    tables = inference["tables"].items()
    ratios = [f"{name}: {e['ensemble']['of_fine_tuned']:.3f}" for name, e in tables if "ensemble" in e]
    return (
        f"The ensemble is one model and needs one pass. Its time as a multiple of the fine-tuned model's, the "
        f"median of "
        f"{inference['rounds']} rounds (`python benchmarks/bench_inference.py`), is: {'; '.join(ratios)}."
    )


def natural_of(run: DiagnosisRecord) -> tuple[str, ...]:
    return tuple(name for name in run.shifts if run.kinds[name] == "natural")


def sets_of(run: DiagnosisRecord) -> tuple[str, ...]:
    return (run.reference, *natural_of(run))


def is_clear(record: DifferenceRecord | None, *, below: bool = False) -> bool:
    return excludes_zero(None if record is None else record.difference, below=below)


def excludes_zero(measured: Measured | None, *, below: bool = False) -> bool:
    interval = None if measured is None else measured.interval
    return interval is not None and (interval[1] < 0 if below else interval[0] > 0)


def count_of(runs: Sequence[DiagnosisRecord], holds: Callable[[DiagnosisRecord], bool]) -> str:
    return out_of(map(holds, runs))


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


def _ends(record: ConnectivityRecord) -> str:
    return stacked(map(with_interval, record.ends or ()))


def _shown(model: str) -> str:
    return {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned", "ensemble": "alpha 0.5"}[model]
