"""The accuracies of the two ends of a path stand beside its barrier, so that two failing networks are recognised."""

from __future__ import annotations

import numpy as np

import shiftproof as sp
from shiftproof.report.connectivity import connectivity_table


def test_the_ends_are_recorded_with_intervals_that_resample_drawings() -> None:
    generator = np.random.default_rng(0)
    drawings = np.repeat(np.arange(40), 5)
    right = {
        alpha: {"sketch": np.repeat(generator.random(40) < share, 5)} for alpha, share in [(0, 0.1), (0.5, 0), (1, 0.6)]
    }
    (record,) = sp.diagnosis.connectivity_of(right, {"sketch": drawings})
    assert record.ends is not None
    for end, alpha in zip(record.ends, (0, 1), strict=True):
        share = right[alpha]["sketch"].mean()
        assert end.value == share
        assert end.interval is not None
        # 40 drawings leave about as much uncertainty as 40 samples, not as 200.
        width = 2 * 1.96 * np.sqrt(share * (1 - share) / 40)
        assert 0.8 * width < end.interval[1] - end.interval[0] < 1.6 * width
    table = connectivity_table([record], [], {"sketch": "drawing"}, with_ends=True)
    assert table.header[1:3] == ("accuracy of the first end, %", "accuracy of the second end, %")
    assert table.rows[0][2].startswith(f"{100 * record.ends[1].value:.1f} (")


def test_files_without_ends_are_still_shown() -> None:
    path = sp.records.PathRecord(
        "photo",
        (),
        tuple(sp.records.PathPoint(alpha, value, {"photo": value}, {}) for alpha, value in [(0, 0.5), (1, 0.7)]),
    )
    records = sp.diagnosis.measure_connectivity(path)
    assert records[0].ends is None
    assert (
        connectivity_table(records, [], {"photo": "sample"}, with_ends=True).header[1] == "lowest height above the line"
    )
