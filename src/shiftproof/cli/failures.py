"""Error messages with options in place of arguments, and the exit codes of errors."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any

from shiftproof.errors import ShiftproofError, TrainingInterruptedError

USER_ERROR = 2
PATH_ERRORS = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_SIGNALLED = 128  # a shell reports a process that a signal ended as 128 and the number of the signal
INTERRUPTED = _SIGNALLED + signal.SIGINT
_QUOTES = "'\""
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]+))?`")


def exit_code_of(error: ShiftproofError) -> int:
    """The exit code of a command that ends with an error of the library."""
    return _SIGNALLED + error.signal_number if isinstance(error, TrainingInterruptedError) else USER_ERROR


def message_of(error: BaseException) -> str:
    """The message of an error, with the notes that were added to it."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])


def options_of(command: Any) -> dict[str, str]:
    """The options of a command, such as ``--set``, by the name of the parameter that each one fills."""
    parameters = getattr(command, "params", ())
    return {entry.name: entry.opts[0] for entry in parameters if entry.param_type_name == "option"}


def name_options(message: str, options: Mapping[str, str]) -> str:
    """A message of the library with the command's options in place of the arguments that it names in backticks.

    >>> name_options("add `overwrite=True`, or choose another `out`.", {"overwrite": "--overwrite", "out": "--out"})
    'add --overwrite, or choose another --out.'
    """

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in options:
            return match[0]
        return options[name] if value in (None, "True") else f"{options[name]} {value.strip(_QUOTES)}"

    return _ARGUMENT.sub(option, message)
