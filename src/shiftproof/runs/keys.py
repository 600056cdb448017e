"""Which command uses which keys of a run file, and which kind of file a mapping of keys is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from shiftproof.errors import InputError, listed

_START = ("model", "head", "weights", "random_weights", "classes", "prompts", "head_cache")
_DATA = ("suite", "image_cache", "on_bad_image", "evaluation", "limit")
_MACHINE = ("seed", "device")
_PATH = ("alphas", "alpha_rule", "alpha_tolerance", "batch_norm")
_WHOLE = (*_START, *_DATA, *_MACHINE, *_PATH, "finetune", "report_to")
# The keys that each command uses; a section stands for all of its keys.
COMMAND_KEYS: Mapping[str, tuple[str, ...]] = {
    "run": _WHOLE,
    "demo": _WHOLE,
    "zeroshot": (*_START, *_DATA, *_MACHINE),
    "finetune": (*_START, *_DATA, *_MACHINE, "finetune", "report_to"),
    "sweep": (*_DATA, *_MACHINE, *_PATH, "finetune.shots"),
    "pretrain": ("model", *_MACHINE, "pretrain", "report_to"),
    "doctor": (*_WHOLE, "pretrain"),
}
# The keys by which a study file is told from a run file; no run file has any of them.
STUDY_KEYS = (
    *("run", "grid", "configurations", "sample", "seeds", "rule", "soups"),
    *("cpus_per_run", "gpus_per_run"),
)


def require_used(command: str, overrides: Iterable[str]) -> None:
    """Raises an InputError for an override of a key that a command has no use for.

    >>> require_used("sweep", ["alphas=5"])
    """
    for override in overrides:
        key = override.partition("=")[0]
        if not _uses(command, key):
            others = [other for other in COMMAND_KEYS if other != "doctor" and _uses(other, key)]
            raise InputError(
                f"`overrides` {override!r}: `{command}` has no use for the key {key!r}, which belongs to "
                f"{listed(others)}. Leave it out."
            )


def _uses(command: str, key: str) -> bool:
    """Whether a command uses a key, a section that the key is in, or a part of the section that it names."""
    return any(f"{key}.".startswith(f"{used}.") or f"{used}.".startswith(f"{key}.") for used in COMMAND_KEYS[command])


def refuse_study_file(path: Path, keys: Collection[str]) -> None:
    """Raises an InputError for the keys of a study file where a run file belongs."""
    if studied := [key for key in keys if key in STUDY_KEYS]:
        raise InputError(
            f"{path} is a study file, since it has the key {studied[0]!r}, and a run file is needed here. Run it with "
            f"shiftproof study {path}."
        )


def refuse_run_file(path: Path, keys: Collection[str], known: Collection[str]) -> None:
    """Raises an InputError for the keys of a run file, which are the ``known`` ones, where a study file belongs."""
    if keys and not any(key in STUDY_KEYS for key in keys) and (named := [key for key in keys if key in known]):
        raise InputError(
            f"{path} is a run file, since it has the key {named[0]!r}, and a study file is needed here. Run it with "
            f"shiftproof run {path}, or put its keys under `run` and add a `grid`."
        )
