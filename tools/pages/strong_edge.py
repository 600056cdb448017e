"""The tables of the strong-edge study, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pages.markdown import bullets, markdown, out_of, require, size_span, span, stacked, titled
from pages.sources import Sources
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.comparisons import Measured
from shiftproof.records.windows import StrongEdgeStudy, WindowSummary
from shiftproof.report.tables import signed_points, with_interval
from shiftproof.report.windows import clean_table, contrast_table, strong_edge_verdict, window_kinds, window_table

HARD = ("away", 0)
_MEASURES = {
    "map in the window": "window_share",
    "newly drawn there": "share_drawn",
    "accuracy lost": "accuracy_drop",
}


def strong_edge_tables(sources: Sources) -> str:
    """The verdict and the tables of the study, seed by seed."""
    parts = []
    for study in sources.strong_edges():
        parts += [f"### Seed {study.seed}", bullets(*strong_edge_verdict(study).splitlines())]
        tables = [clean_table(study)]
        for kind in window_kinds(study):
            tables += [table for table in (window_table(study, *kind), contrast_table(study, *kind)) if table]
        parts += map(titled, tables)
    return "\n\n".join(parts)


def hard_contrasts(studies: Sequence[StrongEdgeStudy], second: str, first: str = "cutmix") -> list[WindowSummary]:
    """The differences of networks under hard windows away from the object, from scratch and fine-tuned, by seed."""
    return [
        contrast
        for study in studies
        for contrast in study.contrasts
        if (contrast.place, contrast.edge) == HARD and first in contrast.model and second in (contrast.second or "")
    ]


def clearly(contrasts: Sequence[WindowSummary], measure: str, sign: int) -> list[bool]:
    """Whether each difference is clearly above 0 (sign 1) or below 0 (sign −1)."""
    intervals = [contrast.means[measure].interval for contrast in contrasts]
    return [i is not None and (i[0] > 0 if sign > 0 else i[1] < 0) for i in intervals]


def findings(sources: Sources) -> str:
    """What came out, over all seeds."""
    studies = sources.strong_edges()
    sentences = bullets(
        _attention(studies),
        "**Every network looks at windows**: from scratch, a hard window away from the object covers "
        f"{_hard(studies, 'scratch', 'area')} % of the image and receives {_hard(studies, 'scratch', 'window_share')} "
        f"% of the map, of which {_hard(studies, 'scratch', 'share_drawn')} points are newly drawn there.",
        _accuracy(studies),
        "**Mixing widens the maps** of fine-tuned networks: without a window, they cover "
        f"{_clean(studies, 'tuned', 'mix', 'width')} % of the area instead of "
        f"{_clean(studies, 'tuned-none', '', 'width')} %, with hard and soft edges alike.",
    )
    limits = (
        "The study has two limits. The reference stands on white, where a pasted box has an edge only where it cuts a "
        "drawing, so CutMix shows a network fewer strong edges here than it does on photos. And from scratch, the "
        f"networks with mixing learned less in the given time ({_clean(studies, 'scratch', 'mix', 'correct')} % "
        f"accuracy without a window, compared with {_clean(studies, 'scratch-none', '', 'correct')} %)."
    )
    return f"{sentences}\n\n{limits}"


def _attention(studies: Sequence[StrongEdgeStudy]) -> str:
    """Whether networks trained with hard edges put more of their maps into windows."""
    measure = "window_share"
    soft, none = hard_contrasts(studies, "smoothmix"), hard_contrasts(studies, "none")
    circle = _values(_tuned(hard_contrasts(studies, "smoothmix-circle")), measure)
    scratch = _values([contrast for contrast in soft if contrast.model.startswith("scratch")], measure)
    more, less, than_none = (clearly(*case) for case in ((soft, measure, 1), (soft, measure, -1), (none, measure, 1)))
    below = size_span(circle, "fine-tuned, CutMix puts less into the window than SmoothMix-C", sign=-1)
    return (
        "**Does the network trained with hard edges attend to the window more than the one trained with soft edges? "
        f"Not consistently.** In comparisons of square and circle, from scratch and fine-tuned, with {len(studies)} "
        f"seeds, CutMix's network puts clearly more of its map into the window in {out_of(more)}, as the paper says, "
        f"and clearly less in {out_of(less)}. Fine-tuned, it puts less there than SmoothMix-C with every seed (by "
        f"{below} points). From scratch, the difference depends on the seed so strongly ({signed_points(min(scratch))} "
        f"to {signed_points(max(scratch))} points) that a single seed, ours or another, shows nothing. Compared with "
        f"training without mixing, CutMix draws clearly more attention to windows in {out_of(than_none)} comparisons."
    )


def _accuracy(studies: Sequence[StrongEdgeStudy]) -> str:
    """Whether networks trained with soft edges lose less accuracy under windows."""
    soft, sentence = hard_contrasts(studies, "smoothmix"), "networks with soft edges never clearly lose more accuracy"
    require(not any(clearly(soft, "accuracy_drop", -1)), sentence)
    circle = _values(_tuned(hard_contrasts(studies, "smoothmix-circle")), "accuracy_drop")
    less = size_span(circle, "fine-tuned, SmoothMix-C loses less accuracy than CutMix", sign=1)
    return (
        "**The network trained with soft edges loses less accuracy** under hard windows away from the object than "
        f"CutMix: clearly so in {out_of(clearly(soft, 'accuracy_drop', 1))} comparisons, and never clearly more. "
        "Fine-tuned, where all networks are about equally good without a window "
        f"({_clean(studies, 'tuned', '', 'correct')} %), SmoothMix-C loses {less} points less. This part of the "
        "argument holds here. From scratch it says little: the networks with soft edges learned less, so they had less "
        "to lose."
    )


def _tuned(contrasts: Sequence[WindowSummary]) -> list[WindowSummary]:
    return [contrast for contrast in contrasts if contrast.model.startswith("tuned")]


def _values(contrasts: Sequence[WindowSummary], measure: str) -> list[float]:
    return [contrast.means[measure].value or 0 for contrast in contrasts]


def _hard(studies: Sequence[StrongEdgeStudy], start: str, measure: str) -> str:
    """The span of a measure under hard windows away from the object, over networks and seeds."""
    summaries = [s for study in studies for s in study.summaries if (s.place, s.edge) == HARD]
    return span(100 * (s.means[measure].value or 0) for s in summaries if s.model.startswith(start))


def _clean(studies: Sequence[StrongEdgeStudy], start: str, part: str, measure: str) -> str:
    """The span of a measure without a window, over networks with these parts of their names and over seeds."""
    return span(
        100 * (windows["clean"].means[measure].value or 0)
        for study in studies
        for model, windows in study.models.items()
        if model.startswith(start) and part in model
    )


def claim_section(sources: Sources) -> list[str]:
    """The section about strong edges among the claims of the papers."""
    studies = sources.strong_edges()
    soft = hard_contrasts(studies, "smoothmix")
    pairs = list(dict.fromkeys((c.model, c.second or "") for c in soft))
    rows = []
    for first, second in pairs:
        of_pair = [contrast for contrast in soft if (contrast.model, contrast.second) == (first, second)]
        cells = (stacked(_mean_points(c.means[measure]) for c in of_pair) for measure in _MEASURES.values())
        rows.append((f"{first} − {second}", *cells))
    return [
        "### Networks look at hard edges, not at soft ones",
        f"Of {len(soft)} comparisons ({len(pairs)} pairs of networks, {len(studies)} seeds each, with hard windows "
        "away from the object), the network trained with hard edges attends to the window clearly more than the one "
        f"trained with soft edges in {sum(clearly(soft, 'window_share', 1))}, and clearly less in "
        f"{sum(clearly(soft, 'window_share', -1))}. The table gives differences in points; "
        "[the study](strong-edge.md) has more.",
        markdown(("networks", *_MEASURES), rows),
    ]


def _mean_points(mean: MeanRecord) -> str:
    form: Callable[[float], str] = signed_points
    return "–" if mean.value is None else with_interval(Measured(mean.value, mean.interval), form)
