"""The study of PACS: a network with ImageNet weights, fine-tuned on photographs, under shifts to art and drawings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from pages.markdown import accuracy_cell, bullets, markdown, span, stacked
from pages.sources import Sources
from shiftproof.records.paths import PathPoint
from shiftproof.records.studies import StudyMember, StudyRecord
from shiftproof.report.tables import signed_points

# Each model that the README compares: its name, the configuration that it is from, and its alpha.
_PLAIN, _MIXED = "averaged", "averaged, smoothmix"
_PLAIN_AGAIN, _MIXED_AGAIN = "re-estimated", "re-estimated, smoothmix"
_MODELS = {
    "start (linear probe)": (_PLAIN, 0.0),
    "fine-tuned": (_PLAIN, 1.0),
    "WiSE-FT, alpha 0.5": (_PLAIN, 0.5),
    "the same, batch norm re-estimated": (_PLAIN_AGAIN, 0.5),
    "fine-tuned with SmoothMix": (_MIXED, 1.0),
    "WiSE-FT of that, alpha 0.5": (_MIXED, 0.5),
    "that one, batch norm re-estimated": (_MIXED_AGAIN, 0.5),
}


def photograph_summary(sources: Sources) -> str:
    """The start, the fine-tuned models and the ensembles at alpha 0.5, with a line for each seed where they differ."""
    study = sources.study("pacs")
    rows = [(name, *_cells(study, *model)) for name, model in _MODELS.items()]
    start = _shifted(study, *_MODELS["start (linear probe)"])
    plain, mixed = (
        [signed_points(_shifted(study, *model) - start) for model in ((averaged, 1.0), (averaged, 0.5), (again, 0.5))]
        for averaged, again in ((_PLAIN, _PLAIN_AGAIN), (_MIXED, _MIXED_AGAIN))
    )
    conclusion = (
        f"On the mean of the shifts and the seeds, fine-tuning changes the start by {plain[0]} points, alpha 0.5 by "
        f"{plain[1]}, and alpha 0.5 with re-estimated batch norm by {plain[2]}; with SmoothMix, it is {mixed[0]}, "
        f"{mixed[1]}, and {mixed[2]}. The reference is saturated, so there is next to nothing to gain on it."
    )
    table = markdown(("model", study.reference, *study.shifts), rows)
    return f"{_title(study)}\n\n{table}\n\n{conclusion}"


def _shifted(study: StudyRecord, configuration: str, alpha: float) -> float:
    """The mean accuracy over the shifts and the seeds."""
    points = [member.path.at(alpha) for member in _members(study, configuration)]
    return statistics.mean(point.accuracy[name] for point in points for name in study.averaged)


def photograph_tables(sources: Sources) -> str:
    """What changed on the mean of the shifts, and every alpha of every configuration."""
    study = sources.study("pacs")
    rows = [
        (configuration, f"{point.alpha:g}", *_cells(study, configuration, point.alpha))
        for configuration in study.configurations
        for point in _members(study, configuration)[0].path.points
    ]
    header = ("configuration", "alpha", study.reference, *study.shifts)
    minutes = sum(member.seconds for member in study.members) / 60
    timing = (
        f"The {len(study.members)} runs took {minutes:.0f} minutes in all, two at a time with one thread each, beside "
        "other work. Those with re-estimated statistics take the fine-tuned model of the run that differs in nothing "
        "else, and their ends, alpha 0 and 1, are the same models."
    )
    return "\n\n".join([_findings(study), timing, _title(study), markdown(header, rows)])


def _title(study: StudyRecord) -> str:
    seeds = " / ".join(str(member.seed) for member in _members(study, _PLAIN))
    return f"Accuracy in per cent with 95 % intervals (Clopper-Pearson), one line per seed ({seeds}) where they differ."


def _members(study: StudyRecord, configuration: str) -> list[StudyMember]:
    return [member for member in study.members if member.configuration == configuration]


def _cells(study: StudyRecord, configuration: str, alpha: float) -> list[str]:
    points = [member.path.at(alpha) for member in _members(study, configuration)]
    cells = []
    for name in (study.reference, *study.shifts):
        lines = [accuracy_cell(point.accuracy[name], point.interval[name]) for point in points]
        cells.append(lines[0] if len(set(lines)) == 1 else stacked(lines))
    return cells


def _findings(study: StudyRecord) -> str:
    def shifted(point: PathPoint) -> float:
        return statistics.mean(point.accuracy[name] for name in study.averaged)

    def reference(point: PathPoint) -> float:
        return point.accuracy[study.reference]

    def change(first: str, second: str, of: Callable[[PathPoint], float]) -> list[float]:
        ends = ((configuration, alpha) for configuration, alpha in (_MODELS[first], _MODELS[second]))
        before, after = ([of(member.path.at(alpha)) for member in _members(study, name)] for name, alpha in ends)
        return [100 * (new - old) for old, new in zip(before, after, strict=True)]

    start, tuned, averaged, again, mixed, mixed_averaged, mixed_again = _MODELS
    sentences = [
        (f"fine-tuning, against the {start}", start, tuned),
        ("alpha 0.5, against fine-tuned", tuned, averaged),
        ("alpha 0.5, against the start", start, averaged),
        ("re-estimated batch norm at alpha 0.5", averaged, again),
        ("SmoothMix in the fine-tuning", tuned, mixed),
        ("alpha 0.5 with SmoothMix, against fine-tuned with it", mixed, mixed_averaged),
        ("alpha 0.5 with SmoothMix, against the start", start, mixed_averaged),
        ("re-estimated batch norm at alpha 0.5, with SmoothMix", mixed_averaged, mixed_again),
    ]
    rows = [
        (what, _by_seed(change(first, second, reference)), _by_seed(change(first, second, shifted)))
        for what, first, second in sentences
    ]
    saturated = span(100 * reference(member.path.at(0)) for member in _members(study, _PLAIN))
    return "\n\n".join(
        [
            bullets(
                f"The start is right on {saturated} % of the photographs, so fine-tuning has next to nothing to gain "
                "on the reference, and the table is about what each step costs or gives under shift."
            ),
            "Points, seed by seed, and their mean:",
            markdown(("step", study.reference, "mean of the shifts"), rows),
        ]
    )


def _by_seed(points: Sequence[float]) -> str:
    each = " / ".join(signed_points(value / 100) for value in points)
    return f"{each}; mean {signed_points(statistics.mean(points) / 100)}"
