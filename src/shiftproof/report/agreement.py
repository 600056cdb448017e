"""Tables of how the predictions of two models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shiftproof.records.comparisons import FollowedRecord
from shiftproof.records.diagnosis import DiagnosisRecord, PairRecord
from shiftproof.report.comparisons import ZERO_SHOT, model_names
from shiftproof.report.overrides import ENDS, override_table, right_override_table
from shiftproof.report.tables import Table, plain, resampling_note, set_name, signed_points, with_interval


def agreement_table(
    pairs: Sequence[PairRecord], clusters: Mapping[str, str], reference: str = "", start: str = ZERO_SHOT
) -> Table | None:
    """Returns how much two models differ, with one row per set, or None if there are no pairs.

    ``pairs`` are of the same two models. ``clusters`` gives, for every set, what its intervals resample, and
    ``reference`` is the name of the set to mark as the reference.
    """
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        agreement = pair.agreement
        cells = [with_interval(agreement.disagreement), with_interval(agreement.prediction_diversity)]
        cells += [with_interval(agreement.kappa_complement, plain), with_interval(agreement.kl_forward, plain)]
        cells += [with_interval(agreement.kl_backward, plain), with_interval(agreement.margin_difference, plain)]
        cells.append(with_interval(None if pair.cka is None else pair.cka.best, plain))
        rows.append((set_name(pair.set, reference), *cells, with_interval(agreement.error_consistency, plain)))
    first, second = (model_names(start).get(model, model) for model in (pairs[0].first, pairs[0].second))
    kinds = (
        "disagreement",
        "diversity",
        "1 − kappa",
        "KL",
        "reverse KL",
        "margin difference",
        "CKA",
        "error consistency",
    )
    note = (
        "Disagreement and diversity are in per cent of the images. Disagreement is the share for which the two models "
        "predict different classes, and diversity is the share that exactly one of them classifies correctly. 1 − "
        "kappa is 0 if they always predict the same class and 1 if they agree no more often than by chance. "
        f"KL is KL({first} || {second}) and reverse KL is KL({second} || {first}), in nats. The margin difference is "
        f"{first}'s margin (top1 − top2) minus {second}'s. CKA compares the outputs and is 1 if they are alike; it "
        "omits pairs of images that belong together. Error consistency is 1 if both models are wrong on the same "
        "images. " + resampling_note(clusters)
    )
    return Table(f"How {first} and {second} differ", ("set", *kinds), tuple(rows), note)


def diversity_table(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> Table | None:
    """Compares the diversity of the start and fine-tuned with that of two fine-tuned models.

    Returns None if the diagnosis has no such comparison.
    """
    diverse = {(pair.first, pair.second, pair.set): pair.agreement.prediction_diversity for pair in diagnosis.pairs}
    rows = tuple(
        (
            set_name(record.set, diagnosis.reference),
            *(with_interval(diverse.get((*pair, record.set))) for pair in (record.first, record.second)),
            with_interval(record.difference, signed_points),
        )
        for record in diagnosis.diversity
    )
    note = (
        "Diversity is the share of images that exactly one of the two models classifies correctly, in per cent. The "
        "difference, in points, is paired image by image. " + resampling_note(diagnosis.clusters)
    )
    header = ("set", f"{start} and fine-tuned", "models fine-tuned on two halves", "difference")
    return (
        Table(f"Are {start} and fine-tuned more diverse than two fine-tuned models?", header, rows, note)
        if rows
        else None
    )


def pair_tables(
    pairs: Sequence[PairRecord],
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    start: str = ZERO_SHOT,
) -> tuple[Table, ...]:
    """Returns a table for every two models and, if there are overrides, tables of which model the ensemble follows."""
    kinds = dict.fromkeys((pair.first, pair.second) for pair in pairs)
    tables: list[Table | None] = [
        agreement_table([pair for pair in pairs if (pair.first, pair.second) == kind], clusters, reference, start)
        for kind in kinds
    ]
    if overrides:
        # The overrides are about the first two models compared: a third one follows one of these.
        names = [model_names(start).get(model, model) for model in next(iter(kinds), ENDS)]
        tables.append(override_table(overrides, clusters, reference, names))
        tables.append(right_override_table(overrides, clusters, reference, names))
    return tuple(table for table in tables if table is not None)
