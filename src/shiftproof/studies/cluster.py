"""The Ray cluster that a study runs on: joining or starting one, and what a run may claim of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from shiftproof.errors import InputError
from shiftproof.studies.file import MemberRun, StudyFile


def gpus_per_run(asked: StudyFile, machines: Sequence[Mapping[str, float]]) -> float:
    """As many as asked for; else one where there are any and the runs may use them."""
    if asked.gpus_per_run is not None:
        return asked.gpus_per_run
    device = asked.members()[0].asked.device
    return float(device != "cpu" and (device != "auto" or any(machine.get("GPU") for machine in machines)))


def without_gpu(run: MemberRun) -> MemberRun:
    """The run as it is where Ray gives it no GPU: "auto" would see, and share, those of all others."""
    if run.asked.device != "auto":
        return run
    return replace(run, asked=run.asked.model_copy(update={"device": "cpu"}))


def require_resources(needs: Mapping[str, float], machines: Sequence[Mapping[str, float]]) -> None:
    """Raises an InputError where no run could ever begin on any machine; Ray would wait for more machines."""
    for name, needed in needs.items():
        largest = max((machine.get(name, 0) for machine in machines), default=0)
        if needed > largest:
            raise InputError(
                f"{name.lower()}s_per_run is {needed:g}, and no machine of Ray's has more than {largest:g}. Lower it."
            )


def require_reachable(address: str) -> None:
    """Raises an InputError where nobody listens at an address; Ray would try again for minutes."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.port:  # "auto" has none
            socket.create_connection((place.hostname or "localhost", place.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({error}). Check `address`, or leave it out."
        ) from error


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster or to one of this machine's own, which ends with the study."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of a cluster that no other machine can reach
    try:
        import ray
    except ImportError as error:
        raise InputError("a study needs Ray. Install it: pip install 'shiftproof[study]'.") from error

    # Without an address Ray would join whichever cluster it finds.
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"Ray could not be joined or started: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
