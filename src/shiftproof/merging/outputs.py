"""The places of merged checkpoints, and what they may replace."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from shiftproof.errors import InputError, listed
from shiftproof.merging.layouts import alpha_folder, is_file
from shiftproof.merging.methods import Plan
from shiftproof.storage import OTHER_FILES, interrupted, move_into_place, read_json
from shiftproof.weights.checkpoints import INDEX, Checkpoint

REPORT, README = "merge.json", "README.md"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def places_of(out: Path, plans: Sequence[Plan]) -> list[Path]:
    """Returns the place of each output; raises an InputError for several outputs in one file."""
    if len(plans) == 1:
        return [out]
    if is_file(out):
        raise InputError(f"{out} is one file, and there are {len(plans)} alphas. Name a directory instead.")
    return [out / alpha_folder(plan.alpha) for plan in plans if plan.alpha is not None]


def publish(made: Path, out: Path) -> None:
    """Moves a finished output into its place; a file comes after its report and model card."""
    if not is_file(out):
        return move_into_place(made, out)
    # The report comes first: by it, the next merge knows that the other files are a merge's too.
    for file in (*reports_of(made / out.name), made / out.name):
        move_into_place(file, out.parent / file.name)


def require_free(out: Path, checkpoints: Sequence[Checkpoint], *, overwrite: bool) -> None:
    """Raises an InputError if an output would touch an input, a file of other origin, or an output to be preserved."""
    if not out.name:
        raise InputError(f"the output {out} has no name. Choose another `out`.")
    if out.suffix.lower() in OTHER_FILES and not out.is_dir():
        raise InputError(
            f"`out` is {str(out)!r}; a merge writes safetensors files or a directory, and no {out.suffix} files. "
            f"Choose {str(out.with_suffix('.safetensors'))!r}, or the name of a directory."
        )
    shards = [checkpoint.folder / shard for checkpoint in checkpoints for shard in checkpoint.shards]
    for path in [*(checkpoint.path for checkpoint in checkpoints), *shards]:
        here, there = out.resolve(), path.resolve()
        if here == there or here in there.parents or (there in here.parents and there.is_dir()):
            raise InputError(f"the output {out} and the input {path} overlap. Choose another `out`.")
    foreign = [report.name for report in reports_of(out) if report.exists()] if is_file(out) else []
    if foreign and not _is_report(reports_of(out)[0]):
        raise InputError(
            f"no merge wrote {listed(foreign)} next to {out}, and they would be lost. Choose another `out`."
        )
    there_now = interrupted(out)  # the next merge restores what a killed one moved aside
    if not there_now.exists():
        return
    if there_now.is_dir() == is_file(out):
        raise InputError(f"{out} is {'a directory' if there_now.is_dir() else 'a file'}. Choose another `out`.")
    if there_now.is_dir() and not any(there_now.iterdir()):
        return
    if there_now.is_dir() and (foreign := _foreign(there_now)):
        raise InputError(f"{out} contains {listed(foreign, 5)}, which no merge wrote. Choose another `out`.")
    if not overwrite:
        raise InputError(f"{out} already exists. Choose another `out`, or add `overwrite=True` to replace it.")


def reports_of(out: Path) -> tuple[Path, Path]:
    """Returns the report and the model card of an output that is one file."""
    return out.with_suffix(f".{REPORT}"), out.with_suffix(".md")


def _is_report(path: Path) -> bool:
    """Returns whether a file is the report of a merge."""
    stored = read_json(path) if path.is_file() else None
    return isinstance(stored, dict) and {"schema", "method", "fingerprint"} <= stored.keys()


def _foreign(out: Path) -> list[str]:
    """Returns what a directory contains that no merge wrote."""
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
    """Returns the nearest directory above an output that already exists."""
    return next(path for path in out.resolve().parents if path.exists())


def require_space(out: Path, needed: int) -> None:
    """Raises an InputError if the disk has too little space for an output of ``needed`` bytes."""
    folder = existing_parent(out)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"the output needs {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free. "
            "Free some space, or choose another `out`."
        )


@contextlib.contextmanager
def errors_of_the_disk(out: Path) -> Iterator[None]:
    """Turns the errors of a full disk into an InputError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"{out} cannot be written ({error.strerror}). Nothing was changed. "
            "Free some space, or choose another `out`."
        ) from error
