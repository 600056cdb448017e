"""The tables of the studies of hyper-parameters and of recipes."""

from __future__ import annotations

from dataclasses import replace

from pages.markdown import bullets, folded, markdown, out_of, require, titled
from pages.sources import Sources
from shiftproof.records.studies import SpreadRecord, StudyMember, StudyRecord
from shiftproof.report.studies import equal_reference_table, spread_table, study_table, study_verdict
from shiftproof.report.tables import per_cent
from shiftproof.studies.spreads import measure_spreads


def hyperparameter_tables(sources: Sources) -> str:
    """The verdict and spreads over all finished runs and over those that learned, and every run."""
    study = sources.study("hyperparameters")
    parts = [_findings(study), study_verdict(study), *_spread_of(study)]
    learned, lost = without_lost(study)
    if lost:
        heading = (
            f"Decided afterwards: without the settings that made the validation accuracy worse ({', '.join(lost)}):"
        )
        parts += [heading, study_verdict(learned), *_spread_of(learned)]
    return "\n\n".join([*parts, *folded(study_table(study))])


def clear_spreads(study: StudyRecord) -> list[bool]:
    """Whether the fine-tuned models clearly vary more than the ensembles, for each ensemble and each kind of set."""
    others = [spread for spread in study.spreads if spread.model != "fine_tuned"]
    return [spread.ratio_interval is not None and spread.ratio_interval[0] > 1 for spread in others]


def _findings(study: StudyRecord) -> str:
    learned, lost = without_lost(study)
    chosen, tuned = (_spread(study, model, "reference") for model in ("wise_ft_chosen", "fine_tuned"))
    closer = _spread(learned, "wise_ft_0.5", "shifts")
    low, high = closer.ratio_interval or (0.0, 0.0)
    factor = f"{closer.ratio or 0:.1f} times ({low:.1f} to {high:.1f})"
    require(low > 1, "among the settings that learned something, ensembles at alpha 0.5 vary less under shift")
    return bullets(
        f"Over all {len(study.configurations)} settings, fine-tuned models clearly vary more than their ensembles in "
        f"{out_of(clear_spreads(study))} comparisons. The deviations consist mostly of settings that diverge "
        f"({', '.join(lost) or 'none'}): halfway to a model that is lost, the ensemble is half lost too. Choosing "
        f"alpha on the validation split repairs it: the lowest reference accuracy is {per_cent(chosen.lowest)} instead "
        f"of {per_cent(tuned.lowest)}. The price is that for the other settings, the chosen alpha lies nearer to the "
        "fine-tuned end than 0.5.",
        f"The {len(learned.configurations)} settings that learned something are compared again below. We decided on "
        "this after the first look, but what is left out is determined by the validation split alone, which is "
        "available before alpha is chosen. Among these settings, fine-tuned models clearly vary more in "
        f"{out_of(clear_spreads(learned))} comparisons: under shift, they lie {factor} further apart than their "
        "ensembles at alpha 0.5.",
    )


def _spread(study: StudyRecord, model: str, sets: str) -> SpreadRecord:
    return next(
        spread
        for spread in study.spreads
        if spread.model == model and (spread.sets == "reference") == (sets == "reference")
    )


def _spread_of(study: StudyRecord) -> list[str]:
    table = spread_table(study)
    return [titled(table)] if table else []


def without_lost(study: StudyRecord) -> tuple[StudyRecord, list[str]]:
    """The study without configurations of which a run validates below zero-shot, and their names; reads no shift."""
    paths = [(member.configuration, member.path) for member in study.members]
    lost = list(dict.fromkeys(name for name, path in paths if path.at(1).validation < path.at(0).validation))
    members = tuple(member for member in study.members if member.configuration not in lost)
    return replace(study, members=members, spreads=measure_spreads(members, study.reference, study.averaged)), lost


def recipe_tables(sources: Sources) -> str:
    """The recipes at equal accuracy on the reference, the soups, and every run."""
    study = sources.study("recipes")
    parts = [_about_soups(study), titled(equal_reference_table(study, "end-to-end"))]
    return "\n\n".join([*parts, *folded(study_table(study))])


def _about_soups(study: StudyRecord) -> str:
    soup = next(soup for soup in study.soups if soup.name == "uniform soup")
    half, whole = (_place(study, soup, alpha) for alpha in (0.5, 1.0))
    places = [_place(study, member, point.alpha) for member in study.members for point in member.path.points]
    reaching = sum(all(a >= b for a, b in zip(place, goal, strict=True)) for place in places for goal in (half, whole))
    return (
        f"The uniform soup of the {len(soup.members)} runs has {half[0]:.1f} on the reference with a mean shift of "
        f"{half[1]:.1f} at alpha 0.5, and {whole[0]:.1f} with {whole[1]:.1f} by itself. Of the {len(places)} points on "
        f"the paths of single runs, {reaching or 'none'} reach either of the two on both counts."
    )


def _place(study: StudyRecord, member: StudyMember, alpha: float) -> tuple[float, float]:
    """The accuracy on the reference and the mean of the shifts, in per cent."""
    accuracy = member.path.at(alpha).accuracy
    return 100 * accuracy[study.reference], 100 * sum(accuracy[s] for s in study.averaged) / len(study.averaged)


def tuning_table(sources: Sources) -> str:
    """The validation accuracies by which the learning rates of the recipes were chosen."""
    study = sources.study("tuning")
    rows = [(m.configuration, f"{100 * m.path.at(1).validation:.1f}") for m in study.members]
    return markdown(("recipe and learning rate", "validation accuracy, development suite"), rows)
