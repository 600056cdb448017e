"""How far fine-tuning moved each layer, in a table."""

from __future__ import annotations

from collections.abc import Sequence

from shiftproof.records.comparisons import MovementRecord
from shiftproof.report.tables import ABSENT, Table, per_cent, plain

_LAYERS_SHOWN = 10


def movement_table(layers: Sequence[MovementRecord], shown: int | None = _LAYERS_SHOWN) -> Table:
    """The ``shown`` layers that fine-tuning moved most, or all; cosines where another fine-tuning was compared."""
    moved = sorted(layers, key=lambda layer: -layer.share)[:shown]
    compared = any(layer.cosine is not None for layer in layers)
    rows = tuple(
        (
            m.layer,
            f"{m.distance:.3g}",
            ABSENT if m.relative is None else per_cent(m.relative),
            per_cent(m.share),
            *((ABSENT if m.cosine is None else plain(m.cosine),) if compared else ()),
        )
        for m in moved
    )
    note = (
        f"The {len(rows)} of {len(layers)} layers that moved most. Relative: distance over the start's norm, "
        f"in per "
        "cent; share: of all squared distances, in per cent. These are properties of the weights, not of a sample."
    )
    return Table(
        "Which layers moved", ("layer", "distance", "relative", "share", *(("cosine",) if compared else ())), rows, note
    )
