"""How two models' predictions differ, in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shiftproof.records.comparisons import FollowedRecord
from shiftproof.records.diagnosis import DiagnosisRecord, PairRecord
from shiftproof.report.comparisons import MODEL_NAMES
from shiftproof.report.overrides import ENDS, override_table, right_override_table
from shiftproof.report.tables import Table, plain, resampling_note, set_name, signed_points, with_interval


def agreement_table(pairs: Sequence[PairRecord], clusters: Mapping[str, str], reference: str = "") -> Table | None:
    """How much two models differ, a row for every set; None without a pair."""
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        own = pair.agreement
        cells = [with_interval(own.disagreement), with_interval(own.prediction_diversity)]
        cells += [with_interval(own.kappa_complement, plain), with_interval(own.kl_forward, plain)]
        cells += [with_interval(own.kl_backward, plain), with_interval(own.margin_difference, plain)]
        cells.append(with_interval(None if pair.cka is None else pair.cka.biased, plain))
        rows.append((set_name(pair.set, reference), *cells, with_interval(own.error_consistency, plain)))
    first, second = (MODEL_NAMES.get(model, model) for model in (pairs[0].first, pairs[0].second))
    kinds = ("disagreement", "diversity", "1 − kappa", "KL", "KL back", "margin difference", "CKA", "error consistency")
    note = (
        "Disagreement and diversity are shares of the images, in per cent: on which the two name different classes, "
        "and that "
        "exactly one of them gets right. 1 − kappa is 0 where they always name the same class and 1 where no oftener "
        "than by "
        f"chance. KL is KL({first} || {second}), in nats. The margin difference is {first}'s top1 − top2 minus "
        f"{second}'s. "
        "CKA compares outputs: 1 is alike. Error consistency is 1 where both err on the same images. "
        + resampling_note(clusters)
    )
    return Table(f"How {first} and {second} differ", ("set", *kinds), tuple(rows), note)


def diversity_table(found: DiagnosisRecord) -> Table | None:
    """Whether zero-shot and fine-tuned are more diverse than two fine-tunings; None where these were not compared."""
    diverse = {(pair.first, pair.second, pair.set): pair.agreement.prediction_diversity for pair in found.pairs}
    rows = tuple(
        (
            set_name(own.set, found.reference),
            *(with_interval(diverse.get((*pair, own.set))) for pair in (own.first, own.second)),
            with_interval(own.difference, signed_points),
        )
        for own in found.diversity
    )
    note = (
        "Diversity is the share of images that exactly one of two models gets right, in per cent; the difference, in "
        "points, is paired image by image. " + resampling_note(found.clusters)
    )
    header = ("set", "zero-shot and fine-tuned", "fine-tunings of two halves", "difference")
    return Table("Are the ends more diverse than two fine-tunings?", header, rows, note) if rows else None


def pair_tables(
    pairs: Sequence[PairRecord],
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
) -> tuple[Table, ...]:
    """A table for every two models and, where there are overrides, whom the ensemble follows."""
    kinds = dict.fromkeys((pair.first, pair.second) for pair in pairs)
    tables: list[Table | None] = [
        agreement_table([pair for pair in pairs if (pair.first, pair.second) == kind], clusters, reference)
        for kind in kinds
    ]
    if overrides:
        # The first two that were compared are those of whom a third follows one.
        names = [MODEL_NAMES.get(model, model) for model in next(iter(kinds), ENDS)]
        tables.append(override_table(overrides, clusters, reference, names))
        tables.append(right_override_table(overrides, clusters, reference, names))
    return tuple(table for table in tables if table is not None)
