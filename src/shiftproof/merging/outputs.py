"""Where merged checkpoints go, and what they may replace."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from shiftproof.errors import InputError, listed
from shiftproof.merging.layouts import alpha_folder, is_file
from shiftproof.merging.methods import Plan
from shiftproof.storage import interrupted, move_into_place, read_json
from shiftproof.weights.checkpoints import INDEX, Checkpoint

REPORT, README = "merge.json", "README.md"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def places_of(out: Path, plans: Sequence[Plan]) -> list[Path]:
    """Where each output goes."""
    if len(plans) == 1:
        return [out]
    if is_file(out):
        raise InputError(f"{out} is one file, and there are {len(plans)} alphas. Name a directory.")
    return [out / alpha_folder(plan.alpha) for plan in plans if plan.alpha is not None]


def publish(made: Path, out: Path) -> None:
    """Puts a finished output in its place; of a file and its reports, the file last."""
    if not is_file(out):
        return move_into_place(made, out)
    # The report first: it tells the next merge whose the others are.
    for file in (*reports_of(made / out.name), made / out.name):
        move_into_place(file, out.parent / file.name)


def require_free(out: Path, checkpoints: Sequence[Checkpoint], *, overwrite: bool) -> None:
    """Refuses an output that would touch an input, or what no merge wrote, or what the caller did not give up."""
    if not out.name:
        raise InputError(f"the output {out} has no name of its own. Choose another `out`.")
    shards = [checkpoint.folder / shard for checkpoint in checkpoints for shard in checkpoint.shards]
    for path in [*(checkpoint.path for checkpoint in checkpoints), *shards]:
        here, there = out.resolve(), path.resolve()
        if here == there or here in there.parents or (there in here.parents and there.is_dir()):
            raise InputError(f"the output {out} and the input {path} are one place. Choose another `out`.")
    foreign = [report.name for report in reports_of(out) if report.exists()] if is_file(out) else []
    if foreign and not _is_report(reports_of(out)[0]):
        raise InputError(f"{listed(foreign)} beside {out} are no merge's, and would be lost. Choose another `out`.")
    there_now = interrupted(out)  # what a killed merge moved aside stands there again when the next one begins
    if not there_now.exists():
        return
    if there_now.is_dir() == is_file(out):
        raise InputError(f"{out} is {'a directory' if there_now.is_dir() else 'a file'}. Choose another `out`.")
    if there_now.is_dir() and not any(there_now.iterdir()):
        return
    if there_now.is_dir() and (foreign := _foreign(there_now)):
        raise InputError(f"{out} holds {listed(foreign, 5)}, which no merge wrote. Choose another `out`.")
    if not overwrite:
        raise InputError(f"{out} exists already. Choose another `out`, or add `overwrite=True` to replace it.")


def reports_of(out: Path) -> tuple[Path, Path]:
    """The report and the model card of an output that is one file."""
    return out.with_suffix(f".{REPORT}"), out.with_suffix(".md")


def _is_report(path: Path) -> bool:
    """Whether a file is a merge's report."""
    stored = read_json(path) if path.is_file() else None
    return isinstance(stored, dict) and {"schema", "method", "fingerprint"} <= stored.keys()


def _foreign(out: Path) -> list[str]:
    """What stands in a directory and was written by no merge."""
    if (out / REPORT).is_file():
        if not _is_report(out / REPORT):
            return sorted(path.name for path in out.iterdir())
        stored = read_json(out / REPORT)
        known = {*stored.get("files", ()), *stored.get("copied_files", ()), REPORT, README, "classifier.json"}
        known |= {"adapter_config.json"}
        return sorted(p.name for p in out.iterdir() if p.name not in known and not p.name.endswith(INDEX))
    outputs = [path for path in out.iterdir() if path.name.startswith("alpha-") and (path / REPORT).is_file()]
    others = sorted(path.name for path in out.iterdir() if path not in outputs)
    return others + [f"{path.name}/{name}" for path in outputs for name in _foreign(path)]


def existing_parent(out: Path) -> Path:
    """The nearest folder above an output that is there already."""
    return next(path for path in out.resolve().parents if path.exists())


def require_space(out: Path, needed: int) -> None:
    """Refuses an output that the disk has no room for."""
    folder = existing_parent(out)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"the output needs {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free. "
            "Free some, or choose another `out`."
        )


@contextlib.contextmanager
def errors_of_the_disk(out: Path) -> Iterator[None]:
    """A disk that runs full midway is told as what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"{out} cannot be written ({error.strerror}). Nothing was changed. Free some space, or name another `out`."
        ) from error
