"""The Ray cluster that a study runs on: how it is joined or started, and which resources a run may use."""

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


def gpus_per_run(study: StudyFile, machines: Sequence[Mapping[str, float]]) -> float:
    """Returns the number of GPUs for each run, which may be a fraction.

    This is the study's ``gpus_per_run`` if it is set. Otherwise it is 1 if a machine has a GPU and the runs may use it,
    and 0 if not. ``machines`` holds the resources of every machine by Ray's names, such as ``CPU`` and ``GPU``.
    """
    if study.gpus_per_run is not None:
        return study.gpus_per_run
    device = study.members()[0].run_file.device
    return float(device != "cpu" and (device != "auto" or any(machine.get("GPU") for machine in machines)))


def without_gpu(run: MemberRun) -> MemberRun:
    """Returns the run with device "cpu" in place of "auto", which would use the GPUs of other runs."""
    if run.run_file.device != "auto":
        return run
    return replace(run, run_file=run.run_file.model_copy(update={"device": "cpu"}))


def require_resources(needs: Mapping[str, float], machines: Sequence[Mapping[str, float]]) -> None:
    """Raises an InputError if no machine is large enough for a run. Ray would wait for another machine without end.

    Both arguments hold resources by Ray's names: what each run needs, and what every machine has.
    """
    for name, needed in needs.items():
        largest = max((machine.get(name, 0) for machine in machines), default=0)
        if needed > largest:
            raise InputError(
                f"{name.lower()}s_per_run is {needed:g}, but no machine in the Ray cluster has more than {largest:g}. "
                "Use a smaller number."
            )


def require_reachable(address: str) -> None:
    """Raises an InputError if nothing listens at an address. Ray would keep trying for minutes."""
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        if url.port:  # the address "auto" has no port
            socket.create_connection((url.hostname or "localhost", url.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({error}). Check `address`, or leave it out."
        ) from error


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Yields Ray, connected to the cluster at ``address``, or to a local one that is stopped when the study ends.

    Raises an InputError if Ray is not installed, or cannot be joined or started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # no other machine can reach a local cluster
    try:
        import ray
    except ImportError as error:
        raise InputError("a study needs Ray. Install it: pip install 'shiftproof[study]'.") from error

    # If no address is given, Ray joins any cluster that it finds.
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"could not connect to a Ray cluster or start one: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
