"""A table of how far fine-tuning moved each layer."""

from __future__ import annotations

from collections.abc import Sequence

from shiftproof.records.comparisons import MovementRecord
from shiftproof.report.tables import ABSENT, Table, per_cent, plain

_LAYERS_SHOWN = 10


def movement_table(layers: Sequence[MovementRecord], shown: int | None = _LAYERS_SHOWN) -> Table:
    """Returns the ``shown`` layers that fine-tuning moved most, or all layers if ``shown`` is None.

    There is a column of cosines if the movement was compared with that of another fine-tuning run.
    """
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
        f"The table shows the {len(rows)} of {len(layers)} layers that moved most. The relative distance is the "
        "distance divided by the norm of the start's weights, and the share is the layer's part of the sum of all "
        "squared distances, both in per cent. These are properties of the weights and not of a sample, so they have no "
        "intervals."
    )
    return Table(
        "Which layers moved", ("layer", "distance", "relative", "share", *(("cosine",) if compared else ())), rows, note
    )
