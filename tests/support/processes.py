"""Processes that run a command, a script or code, forked from one that has imported what they need.

What a test finds of them is what it would find of a fresh interpreter: signals, exit codes, output, locks, files. Where
the start of an interpreter is the subject (what is imported, ``python -m``), use `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal

Kind = Literal["module", "script", "code"]


class ForkedProcess:
    """A running process, with the methods of `subprocess.Popen`; its streams are text."""

    def __init__(self, report: IO[str], streams: Sequence[IO[str]]) -> None:
        self.stdin, self.stdout, self.stderr = streams
        self._report = report
        self.pid = int(report.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._report.readline())
            self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, str]:
        """What the process writes to its end; one that takes longer is ended."""
        with ThreadPoolExecutor(2) as readers:
            written = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            with contextlib.suppress(BrokenPipeError), self.stdin:
                self.stdin.write(text)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired as error:
                self.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(60)
                self.kill()
                error.output = "".join(reader.result() for reader in written)
                raise
            return written[0].result(), written[1].result()

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.wait()

    def __del__(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr, self._report):
            with contextlib.suppress(OSError):
                stream.close()


def start(
    kind: Kind,
    what: str | Path,
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    start_new_session: bool = False,
) -> ForkedProcess:
    """Starts ``python -m WHAT``, ``python WHAT`` or ``python -c WHAT`` with arguments."""
    request = {
        "kind": kind,
        "what": str(what),
        "arguments": [*map(str, arguments)],
        "cwd": str(cwd or Path.cwd()),
        "env": dict(os.environ if env is None else env),
        "start_new_session": start_new_session,
    }
    (child_in, stdin), (stdout, child_out), (stderr, child_err), (report, child_report) = (os.pipe() for _ in range(4))
    handed = [child_in, child_out, child_err, child_report]
    socket.send_fds(server(), [json.dumps(request).encode()], handed)
    for descriptor in handed:
        os.close(descriptor)
    streams = [os.fdopen(stdin, "w", encoding="utf-8"), *(os.fdopen(s, encoding="utf-8") for s in (stdout, stderr))]
    return ForkedProcess(os.fdopen(report, encoding="utf-8"), streams)


def run(
    kind: Kind,
    what: str | Path,
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a module, a script or code to its end."""
    with start(kind, what, *arguments, cwd=cwd, env=env) as started:
        out, err = started.communicate(timeout=timeout)
    return subprocess.CompletedProcess([str(what), *map(str, arguments)], started.wait(), out, err)


@functools.cache
def server() -> socket.socket:
    """The connection to the server of this process, which is started when a test needs it."""
    here, there = socket.socketpair(type=socket.SOCK_SEQPACKET)
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, "-m", "support.fork_server", str(there.fileno())]
    running = subprocess.Popen(
        command, pass_fds=[there.fileno()], env={**os.environ, **one_thread}, start_new_session=True
    )
    there.close()

    def end() -> None:
        here.close()
        running.wait()

    atexit.register(end)
    return here
