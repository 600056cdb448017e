"""Merges that fail midway: full disks, failed renames, kills, and the memory that a merge takes."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support import processes
from support.folders import assert_unchanged, tree_contents
from support.weights import save_checkpoint, save_pair

import shiftproof as sp
from shiftproof import storage
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.merging.streams import fingerprint_tensors
from shiftproof.storage import move_into_place, staged


class Disk(NamedTuple):
    """A folder with room for so many bytes; ``limited`` makes it so where no file system could be mounted."""

    folder: Path
    limited: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def files_limited(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes in this block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A disk of 8 MB: a file system of its own where mounting is permitted, else a limit on files.

    It is not in pytest's folders: a mount that a killed test leaves would break the next run's cleaning.
    """
    folder = Path(tempfile.mkdtemp(prefix="shiftproof-disk-"))
    mounted = False
    if request.param == "tmpfs" and sys.platform == "linux" and shutil.which("mount"):
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield Disk(folder, contextlib.nullcontext if mounted else functools.partial(files_limited, 8 << 20))
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
@pytest.mark.parametrize("how", [MergeSettings(), MergeSettings(method="uniform")], ids=["linear", "uniform"])
def test_a_disk_that_fills_midway_leaves_what_was_there(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, how: MergeSettings
) -> None:
    small, large = save_pair(tmp_path / "small"), save_pair(tmp_path / "large", size=3 << 20)
    merge_files(*small, out=disk.folder / out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 50, 0, 1 << 50))
    with disk.limited(), assert_unchanged(disk.folder), assert_unchanged(tmp_path / "large"):
        with pytest.raises(sp.InputError, match="cannot be written .*Nothing was changed. Free some space"):
            merge_files(*large, out=disk.folder / out, settings=how, overwrite=True)
        with pytest.raises(sp.InputError, match="cannot be written"):
            merge_files(*large, out=disk.folder / f"new-{out}", settings=how)
    # And with room again it succeeds.
    (record,) = merge_files(*small, out=disk.folder / out, alpha=0.1, overwrite=True)
    stored = disk.folder / out / "model.safetensors" if out == "merged" else disk.folder / out
    assert fingerprint_tensors(load_file(stored)) == record.fingerprint


def test_a_disk_without_room_is_refused_before_anything_is_written(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = save_pair(tmp_path / "large", size=1 << 20)
    if disk.limited is not contextlib.nullcontext:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(8 << 20, 0, 8 << 20))
    merge_files(*large, out=disk.folder / "one", alpha=0.5)  # 4 MB of 8
    with assert_unchanged(disk.folder):
        with pytest.raises(sp.InputError, match="the output needs 0.01 GB and .* has 0.0[01] GB free. Free some"):
            merge_files(*large, out=disk.folder / "deep" / "two", alpha=(0.3, 0.5, 0.7))
        # A dry run needs no room.
        merge_files(*large, out=disk.folder / "two", alpha=(0.3, 0.5, 0.7), dry_run=True)


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
def test_a_failed_rename_leaves_the_earlier_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    a, b = save_pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / out)
    replace = os.replace

    def failing(source: str | Path, target: str | Path) -> None:
        if Path(target) == tmp_path / out:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    stored = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
    before = stored.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", failing)
        with pytest.raises(sp.InputError, match="Nothing was changed"):
            merge_files(a, b, alpha=0.7, out=tmp_path / out, overwrite=True)
    assert stored.exists()
    assert stored.read_bytes() == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_fails_in_a_stage_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with staged(tmp_path / "out") as made:
            (made / "half").write_text("half")
            raise ValueError("broken")

    with assert_unchanged(tmp_path), pytest.raises(ValueError, match="broken"):
        fail()


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    """The earlier output was moved aside, and the new one did not come."""
    out = tmp_path / "merged"
    a, b = save_pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=out)
    earlier = tree_contents(out)
    partial = tmp_path / ".merged.partial" / "made"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    out.rename(tmp_path / ".merged.replaced")
    with staged(out) as made:
        assert tree_contents(out) == earlier
        assert not list(made.iterdir())
    assert tree_contents(out) == earlier
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "merged"}
    # A merge that fails restores it as well, and one that succeeds leaves nothing else.
    out.rename(tmp_path / ".merged.replaced")
    (record,) = merge_files(a, b, alpha=0.9, out=out, overwrite=True)
    assert fingerprint_tensors(load_file(out / "model.safetensors")) == record.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "merged"}


def test_an_output_that_was_moved_aside_still_needs_overwrite(tmp_path: Path) -> None:
    a, b = save_pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / "merged")
    earlier = tree_contents(tmp_path / "merged")
    (tmp_path / "merged").rename(tmp_path / ".merged.replaced")
    with pytest.raises(sp.InputError, match="add `overwrite=True`"):
        merge_files(a, b, alpha=0.9, out=tmp_path / "merged")
    saved = tmp_path / "merged" if (tmp_path / "merged").exists() else tmp_path / ".merged.replaced"
    assert tree_contents(saved) == earlier


def test_a_leftover_beside_a_whole_output_is_cleared_away(tmp_path: Path) -> None:
    """Killed after the second rename: the new output stands, the old one was not deleted yet."""
    a, b = save_pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / "merged")
    shutil.copytree(tmp_path / "merged", tmp_path / ".merged.replaced")
    (tmp_path / ".merged.replaced" / "old").write_text("old")
    merge_files(a, b, alpha=0.3, out=tmp_path / "merged", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "merged"}
    assert not (tmp_path / "merged" / "old").exists()


def test_moving_into_place_replaces_whole_directories_and_files(tmp_path: Path) -> None:
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    move_into_place(tmp_path / "new", tmp_path / "out")
    assert tree_contents(tmp_path).keys() == {"out", "out/new"}
    (tmp_path / "file").write_text("new")
    (tmp_path / "other").write_text("old")
    move_into_place(tmp_path / "file", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "new"
    assert not (tmp_path / "file").exists()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two checkpoints of 160 MB."""
    folder = tmp_path_factory.mktemp("large")
    made = []
    for number in range(2):
        tensors = {f"layer.{i}": torch.full((n << 20,), number + i / 7) for i, n in enumerate((24, 8, 4, 4))}
        made.append(save_checkpoint(tensors, folder / f"{number}.safetensors"))
    yield made[0], made[1]
    shutil.rmtree(folder)


def killed_at(arguments: Sequence[str], made: Path, size: int) -> bool:
    """Kills a command once it has written so many bytes; whether it was still at it."""
    with processes.start("module", "shiftproof", *arguments) as running:
        while running.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # not begun, or moved into place in this very moment
                if sum(file.stat().st_size for file in made.iterdir()) >= size:
                    running.kill()
                    break
        assert running.wait() in (0, -signal.SIGKILL)
    return made.exists() and any(made.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("out", "shares"), [("merged", (0.01, 0.5)), ("merged.safetensors", (0.3,))])
def test_a_killed_merge_leaves_the_earlier_output_and_can_be_restarted(
    tmp_path: Path, large: tuple[Path, Path], out: str, shares: tuple[float, ...]
) -> None:
    small = save_pair(tmp_path / "small")
    arguments = ["merge", *map(str, large), "--alpha", "0.3", "--out", str(tmp_path / out), "--overwrite"]
    made = tmp_path / f".{out}.partial" / "made"

    def standing() -> dict[str, str]:
        return {k: v for k, v in tree_contents(tmp_path).items() if not k.startswith(("small", f".{out}.partial"))}

    for share in shares:
        for _ in range(5):  # a busy machine may look away until the merge is done
            merge_files(*small, out=tmp_path / out, overwrite=True)
            earlier = standing()
            if killed_at(arguments, made, int(share * (160 << 20))):
                break
        else:
            pytest.fail("the merge was always done before it could be killed")
        assert standing() == earlier
        assert sum(file.stat().st_size for file in made.iterdir()) >= share * (160 << 20)
        with pytest.raises(sp.InputError, match="already exists"):
            merge_files(*small, out=tmp_path / out)
        assert standing() == earlier
    if out == "merged":
        ended = processes.run("module", "shiftproof", *arguments)
        assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0)
    else:  # in this process, which spares the imports
        merge_files(*large, alpha=0.3, out=tmp_path / out, overwrite=True)
    reports = {out} if out == "merged" else {out, "merged.md", "merged.merge.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"small", *reports}
    stored = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
    tensors = load_file(stored)
    want = sp.interpolate_weights(*({"w": torch.full((3,), n + 3 / 7)} for n in range(2)), 0.3)["w"][0]
    assert all((tensor == tensor[0]).all() for tensor in tensors.values())
    assert tensors["layer.3"][0] == want


MERGER = """
import sys
from shiftproof.merging.files import merge_files
import torch
torch.lerp(torch.zeros(9), torch.ones(9), 0.5)
print("ready", flush=True)
sys.stdin.readline()
merge_files(*sys.argv[2:], alpha=(0.3, 0.6), out=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded(tmp_path: Path, large: tuple[Path, Path]) -> None:
    """Two checkpoints of 160 MB and two outputs: mapped pages may come and go, memory of its own is a few pieces."""

    def anonymous(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)

    with processes.start("code", MERGER, tmp_path / "merged", *large) as running:
        assert running.stdout.readline() == "ready\n"
        before, most, samples = anonymous(running.pid), 0, 0
        running.stdin.write("\n")
        running.stdin.flush()
        while running.poll() is None:
            most = max(most, anonymous(running.pid))
            samples += 1
            time.sleep(0.002)
        assert running.returncode == 0
    assert samples > 20
    assert most - before < 150e6
    assert (tmp_path / "merged" / "alpha-0.60" / "model.safetensors").stat().st_size > 160 << 20


HOLDER = """
import sys
from pathlib import Path
from shiftproof.storage import staged
with staged(Path(sys.argv[1])) as made:
    (made / "model.safetensors").write_text("in work")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
def test_a_second_process_is_refused(tmp_path: Path, out: str) -> None:
    a, b = save_pair(tmp_path)
    with processes.start("code", HOLDER, tmp_path / out) as holder:
        assert holder.stdout.readline() == "held\n"
        with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="in use by another shiftproof process"):
            merge_files(a, b, out=tmp_path / out)
        assert (tmp_path / f".{out}.partial" / "made" / "model.safetensors").read_text() == "in work"
        holder.kill()
    merge_files(a, b, out=tmp_path / out)
    assert not (tmp_path / f".{out}.partial").exists()
