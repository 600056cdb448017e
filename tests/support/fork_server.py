"""A process that has imported what the commands need and forks one child per command.

Usage: ``python -m support.fork_server SOCKET``, where the descriptor SOCKET is one end of a connected pair. Importing
torch and open_clip takes seconds, a fork takes milliseconds. `support.processes` is the other end.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MODULES = ("torch", "torchvision", "torch._dynamo", "open_clip", "timm", "accelerate", "matplotlib.pyplot")
MODULES += ("scipy.stats", "torch.distributed", "torch.testing")
REQUEST_BYTES = 1 << 20


def load_modules() -> None:
    """Imports what commands import, and computes nothing: a fork keeps no thread but the one that forks."""
    for name in MODULES:
        importlib.import_module(name)
    shiftproof = importlib.import_module("shiftproof")
    for module in pkgutil.walk_packages(shiftproof.__path__, "shiftproof."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    if threading.active_count() > 1:
        raise RuntimeError(f"an import has started threads: {threading.enumerate()}")
    gc.collect()
    gc.freeze()  # a child that collects garbage leaves the pages of these modules shared


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks a child per request; returns the request in the child, and None in the server when no more can come."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
        if not message:
            return None
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # watchers that have ended
        if os.fork() == 0:
            requests.close()
            request: dict[str, Any] = json.loads(message)
            if watch_child(request, descriptors):
                return request
        for descriptor in descriptors:
            os.close(descriptor)


def watch_child(request: dict[str, Any], descriptors: list[int]) -> bool:
    """Forks the child of a request and reports how it ended; returns in the child only."""
    *streams, report = descriptors
    os.set_inheritable(report, False)
    if child := os.fork():
        for descriptor in streams:
            os.close(descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _, status = os.waitpid(child, 0)
        os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    if request["start_new_session"]:
        os.setsid()
    os.write(report, f"{os.getpid()}\n".encode())
    os.close(report)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return True


def become(request: dict[str, Any]) -> None:
    """Runs a module, a script or code as an interpreter would that has just started."""
    import numpy as np

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8")  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8")  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace")  # type: ignore[misc]  # noqa: SIM115
    np.random.seed()  # `random` does so itself after a fork
    kind, what = request["kind"], request["what"]
    sys.argv = [what if kind != "code" else "-c", *request["arguments"]]
    sys.path[0] = str(Path(what).resolve().parent) if kind == "script" else request["cwd"]
    if kind == "module":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "script":
        runpy.run_path(what, run_name="__main__")
    else:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))


def exit_code(run: Callable[[], None]) -> int:
    """The code that an interpreter ends with after ``run``; after Ctrl-C it ends by the signal."""
    try:
        run()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(code: int) -> NoReturn:
    """Ends this process as an interpreter does, but for taking apart every imported module, which takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    load_modules()
    if child := serve(requests):
        end(exit_code(functools.partial(become, child)))


if __name__ == "__main__":
    main()
