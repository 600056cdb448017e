"""Files that are whole or absent, the lock, and the parts beside them: seeds, events, messages."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof import progress
from shiftproof.errors import nearest, require_at_least, require_between, require_choice
from shiftproof.seeding import child_seed
from shiftproof.storage import (
    cache_directory,
    locked,
    move_into_place,
    read_json,
    staged,
    write_atomically,
    write_json,
    write_text,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=15)  # every one waits for the disk
@given(value=PLAIN)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    assert read_json(write_json(path, value)) == value


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_and_the_old_file_stays(tmp_path: Path, broken: float) -> None:
    path = write_json(tmp_path / "value.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": broken})
    assert read_json(path) == {"loss": 1.0}


def test_a_writer_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = write_text(tmp_path / "kept.txt", "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        write_atomically(path, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]
    assert path.read_text() == "old"


def test_readers_never_see_a_half_written_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "kept.txt", "old")
    seen = []

    def write(temporary: Path) -> None:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"


def test_folders_are_made_and_the_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    made = write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert made.stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"{", "not valid JSON"), (b"\xff", "not valid")]
)
def test_a_json_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(sp.InputError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


HOLDER = """
import sys
from shiftproof.storage import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(sp.InputError, match="in use by another") as caught, locked(tmp_path):
            pass
        assert str(tmp_path) in str(caught.value)
        holder.kill()  # no chance to tidy up: the system frees the lock
        holder.wait()
    with locked(tmp_path):
        (tmp_path / "written").write_text("mine")


def test_the_lock_is_freed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), locked(tmp_path / "run"):
        raise RuntimeError("broken")
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_lock_is_refused_inside_the_process_that_holds_it_too(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(sp.InputError, match="in use by another"), locked(tmp_path):
            pass
        with pytest.raises(sp.InputError, match="in use by another"), locked(tmp_path):
            pass
    with locked(tmp_path):
        assert (tmp_path / ".lock").is_file()


def test_a_directory_may_be_deleted_while_its_lock_is_held(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as staging:
        (staging / "file").write_text("whole")
        move_into_place(staging, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SHIFTPROOF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "shiftproof"
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("SHIFTPROOF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "shiftproof"


@given(seed=st.integers(0, 2**31), path=st.lists(st.text("abc", min_size=1) | st.integers(0, 9), max_size=3))
def test_a_named_generator_depends_on_its_name_alone(seed: int, path: list[str | int]) -> None:
    torch.rand(3)  # what is drawn elsewhere does not matter
    first = torch.rand(4, generator=sp.seeding.child_generator(seed, *path))
    assert torch.equal(first, torch.rand(4, generator=sp.seeding.child_generator(seed, *path)))
    assert not torch.equal(first, torch.rand(4, generator=sp.seeding.child_generator(seed + 1, *path)))
    assert not torch.equal(first, torch.rand(4, generator=sp.seeding.child_generator(seed, *path, "more")))
    assert 0 <= child_seed(seed, *path) < 2**63


def test_events_reach_every_listener_inside_its_block_only() -> None:
    outer: list[progress.Event] = []
    inner: list[progress.Event] = []
    progress.report("train", 0, 3)
    with progress.listening(outer.append):
        with progress.listening(inner.append):
            progress.report("train", 1, 3, loss=0.5)
        progress.report("train", 2, 3)
    progress.report("train", 3, 3)
    assert [event.done for event in outer] == [1, 2]
    assert inner == [progress.Event("train", 1, 3, {"loss": 0.5})]


def test_checks_name_the_thing_the_value_and_the_way_out() -> None:
    with pytest.raises(sp.InputError, match=r"unknown rule 'fixt'. Did you mean 'fixed'\?"):
        require_choice("rule", "fixt", ["fixed", "reference"])
    with pytest.raises(sp.InputError, match=r"alpha is nan; it must lie between 0 and 1"):
        require_between("alpha", math.nan, 0, 1)
    with pytest.raises(sp.InputError, match=r"steps is 0; it must be at least 1"):
        require_at_least("steps", 0, 1)
    assert require_between("alpha", 1, 0, 1) == 1
    assert nearest("zzz", [f"name{i}" for i in range(12)]).endswith("'name9' and 2 more.")


def test_every_error_on_purpose_is_caught_by_one_type() -> None:
    assert issubclass(sp.IncompatibleWeightsError, sp.InputError)
    assert issubclass(sp.InputError, sp.ShiftproofError)
    assert issubclass(sp.InputError, ValueError)


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, shiftproof, shiftproof.records.summaries, shiftproof.storage; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert list(sp.__all__) == sorted(sp.__all__)
    assert all(hasattr(sp, name) for name in sp.__all__)
