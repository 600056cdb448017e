"""The claims of the papers, and in a line each what the emoji suite says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pages import strong_edge
from pages.diagnosis import count_of, excludes_zero, is_clear, natural_of, sets_of
from pages.markdown import markdown, out_of, span
from pages.sources import Sources
from pages.studies import clear_spreads, without_lost
from shiftproof.records.comparisons import ConnectivityRecord
from shiftproof.records.diagnosis import HALVES, DiagnosisRecord
from shiftproof.report.tables import signed_points, with_interval

Runs = Sequence[DiagnosisRecord]
_ENDS = ("zero_shot", "fine_tuned")


def claims_table(sources: Sources) -> str:
    """One row per claim."""
    runs, study = sources.diagnoses(), sources.study("hyperparameters")
    spreads, learned = (out_of(clear_spreads(some)) for some in (study, without_lost(study)[0]))
    soft = strong_edge.hard_contrasts(sources.strong_edges(), "smoothmix")
    more, less = (out_of(strong_edge.clearly(soft, "window_share", sign)) for sign in (1, -1))
    drops = out_of(strong_edge.clearly(soft, "accuracy_drop", 1))
    costs = [
        e["ensemble"]["of_fine_tuned"] for e in sources.benchmark("inference")["tables"].values() if "ensemble" in e
    ]
    rows = [
        ("Fine-tuning loses robustness", _loses(runs)),
        ("Alpha 0.5 keeps both", _keeps(runs)),
        ("Zero-shot and fine-tuned are more diverse than two fine-tuned models", _diverse(runs)),
        ("Zero-shot overrides under shift, fine-tuned on the reference", _overrides(runs)),
        ("The path is linearly connected", _connected(runs)),
        (
            "Hyper-parameters matter less",
            f"fine-tuned models clearly vary more in {spreads} comparisons, and in {learned} among the settings that "
            "learned something",
        ),
        (
            "Networks look at hard edges and not at soft ones",
            f"the network trained with hard edges attends to windows clearly more in {more} comparisons and clearly "
            f"less in {less}; it clearly loses more accuracy in {drops}",
        ),
        ("No extra cost at inference", f"takes {span(costs, '{:.2f}'.format)} times the fine-tuned model's time"),
    ]
    return markdown(("claim", "on the emoji suite"), rows)


def _points(runs: Runs, first: str, second: str, sets: Callable[[DiagnosisRecord], tuple[str, ...]]) -> str:
    """The span of a difference over the seeds, in points."""
    records = [run.difference(first, second, *sets(run)) for run in runs]
    return span((record.difference.value for record in records if record is not None), signed_points)


def _reference_of(run: DiagnosisRecord) -> tuple[str, ...]:
    return (run.reference,)


def _loses(runs: Runs) -> str:
    clear = count_of(
        runs, lambda run: is_clear(run.difference("fine_tuned", "zero_shot", *natural_of(run)), below=True)
    )
    return (
        f"clearly with {clear} seeds: {_points(runs, 'fine_tuned', 'zero_shot', natural_of)} points on the mean of the "
        "natural shifts"
    )


def _keeps(runs: Runs) -> str:
    less = count_of(runs, lambda run: is_clear(run.difference("ensemble", "fine_tuned", run.reference), below=True))
    back = count_of(runs, lambda run: is_clear(run.difference("ensemble", "fine_tuned", *natural_of(run))))
    gap = count_of(runs, lambda run: is_clear(run.difference("ensemble", "zero_shot", *natural_of(run)), below=True))
    below = _points(runs, "ensemble", "fine_tuned", _reference_of)
    regained, missing = (_points(runs, "ensemble", end, natural_of) for end in ("fine_tuned", "zero_shot"))
    return (
        f"on the reference, {below} points from fine-tuned, clearly less with {less} seeds; on the mean of the natural "
        f"shifts, {regained} points from fine-tuned, clearly more with {back}, and {missing} points from zero-shot, "
        f"clearly less with {gap}"
    )


def _diverse(runs: Runs) -> str:
    contrasts = [contrast.difference for run in runs for contrast in run.diversity if contrast.set in sets_of(run)]
    pairs = [(run.pair(*_ENDS, name), run.pair(*HALVES, name)) for run in runs for name in sets_of(run)]
    compared = [
        (apart.cka.best.value, close.cka.best.value)
        for apart, close in pairs
        if apart and close and apart.cka and close.cka and apart.cka.best and close.cka.best
    ]
    return (
        f"clearly in {out_of(map(excludes_zero, contrasts))} comparisons; CKA of the outputs is lower in "
        f"{out_of(apart < close for apart, close in compared)}"
    )


def _overrides(runs: Runs) -> str:
    reference = count_of(runs, lambda run: excludes_zero(run.overrides[run.reference].lead, below=True))
    shifts = [
        f"on {name} with {count_of(runs, lambda run, name=name: excludes_zero(run.overrides[name].lead))}"  # type: ignore[misc]
        for name in natural_of(runs[0])
    ]
    return f"clearly on the reference with {reference} seeds, {', '.join(shifts)}"


def _connected(runs: Runs) -> str:
    records = [(run.seed, record) for run in runs for record in run.connectivity]
    inner = sum(len(record.alphas) - 2 for _, record in records)
    under = [(seed, record, alpha) for seed, record in records for alpha in record.clearly_under]
    where = ", ".join(f"{r.set}, seed {seed}, by {_depth(r, alpha):.1f} points" for seed, r, alpha in under)
    scratch = [path for run in runs for path in run.other_paths if "random weights" in path.name]
    broken = [
        bool(record.clearly_under) for path in scratch for record in path.connectivity if record.set == _set(runs)
    ]
    text = (
        f"no alpha is under the line on {out_of(record.observation_1 for _, record in records)} paths; {len(under)} of "
        f"{inner} alphas {'is' if len(under) == 1 else 'are'} clearly under it{f' ({where})' if under else ''}, where "
        "chance alone gives a few"
    )
    return (
        text
        if not scratch
        else (
            f"{text}. Between networks from random weights it clearly fails on the reference with {out_of(broken)} "
            f"seeds{_weak(scratch[0].connectivity)}"
        )
    )


def _set(runs: Runs) -> str:
    return runs[0].reference


def _depth(record: ConnectivityRecord, alpha: float) -> float:
    return -100 * record.above_line[record.alphas.index(alpha)]


def _weak(records: Sequence[ConnectivityRecord]) -> str:
    """How accurate the two networks from random weights are, if that was recorded."""
    known = [f"{record.set} {' and '.join(map(with_interval, record.ends))}" for record in records if record.ends]
    return f" (their accuracies in per cent, first seed: {'; '.join(known)})" if known else ""
