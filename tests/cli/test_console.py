"""What a person sees of a long job, where the output is no terminal."""

from __future__ import annotations

import pytest

from shiftproof import progress
from shiftproof.cli.console import live_progress


def test_a_second_stage_of_one_name_has_a_clock_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("shiftproof.cli.console.time.monotonic", lambda: now)
    with live_progress():
        for _ in range(2):
            for done in range(1, 101):
                progress.report("fine-tune", done, 100)
                now += 1.0
    lines = capsys.readouterr().err.splitlines()
    half = len(lines) // 2
    assert lines[:half] == lines[half:]
    # A second for each unit: 31 are done after 30 of them, from the first report on.
    assert lines[0] == f"fine-tune: 31 of 100    0:01:{int(30 / 31 * 69) - 60:02d} left"
    assert lines[half - 1] == "fine-tune: 100 done"
