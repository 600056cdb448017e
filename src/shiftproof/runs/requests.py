"""What ``run.yaml`` records of a request: the settings as resolved, and the versions that worked on the run."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

import yaml

from shiftproof.errors import ResultWarning, listed
from shiftproof.runs.directory import Request
from shiftproof.runs.file import RunFile, read_yaml

_VERSIONED = ("shiftproof", "torch", "torchvision", "open_clip_torch", "timm", "numpy")


def request_of(run_file: RunFile) -> Request:
    """Returns the request of a run: ``run.yaml`` with the versions, compared by the settings that affect results."""

    def differences(file: Path) -> list[str]:
        return RunFile.read(file).differences(run_file)

    def text(earlier: Path | None) -> str:
        return recorded_request(run_file, earlier)

    return Request(text, differences, records_versions)


def records_versions(settings: Path) -> bool:
    """Whether a run.yaml is that of a run directory, which records versions, rather than one that a user wrote."""
    return settings.is_file() and "\nversions:" in settings.read_text(encoding="utf-8", errors="replace")


def recorded_request(run_file: RunFile, earlier: Path | None) -> str:
    """The text of a ``run.yaml``: all settings with paths in full, and the versions that worked on the run.

    ``earlier`` is the file of a run that is continued. ``versions`` are then those that began the run, and
    ``later_versions`` lists those that continued it where they differ. Warns if the present ones differ from the last.
    """
    used, now = [] if earlier is None else list(recorded_versions(earlier)), versions()
    if earlier is not None and used and used[-1] != now:
        changed = [f"{name} {used[-1].get(name)} (now {now[name]})" for name in now if used[-1].get(name) != now[name]]
        warnings.warn(
            f"what is finished in {earlier.parent} was made with {listed(changed)}. It is kept, and numbers may differ "
            f"in their last digits between the two; {earlier.name} records both.",
            ResultWarning,
            stacklevel=2,
        )
    if not used or used[-1] != now:
        used.append(now)
    recorded = {"versions": used[0], **({"later_versions": used[1:]} if used[1:] else {})}
    return run_file.with_full_paths().to_yaml() + yaml.safe_dump(recorded)


def recorded_versions(file: Path) -> tuple[dict[str, str], ...]:
    """The versions that a ``run.yaml`` records, in the order in which they worked on the run."""
    if not file.is_file():
        return ()
    settings = read_yaml(file, "run file")
    return (*([settings["versions"]] if "versions" in settings else []), *settings.get("later_versions", ()))


def versions() -> dict[str, str]:
    """Returns the versions of the packages that affect results."""
    return {name: version(name) for name in _VERSIONED}
