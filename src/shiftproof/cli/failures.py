"""What a command that fails prints: one message on stderr in the terms of the command line, and its exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

from shiftproof.errors import ShiftproofError, TrainingInterruptedError

USER_ERROR = 2
TERMINATED = 128 + 15  # SIGTERM
_PATH_ERRORS = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_QUOTES = "'\""
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]+))?`")


class CommandGroup(TyperGroup):
    """A group of commands that turns the errors of the library into a message and an exit code.

    A mistake of the user's ends with code 2. A training run that SIGTERM stopped, and that can be resumed, ends with
    143, as a shell reports that signal. Any other exception is a defect of the program and passes through.
    """

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; the message of a failure names the options of the command in place of arguments."""
        try:
            return super().invoke(ctx)
        except ShiftproofError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            _exit_with(
                name_options(str(error), options_of(command)),
                TERMINATED if isinstance(error, TrainingInterruptedError) else USER_ERROR,
            )
        except _PATH_ERRORS as error:
            _exit_with(f"{error.filename}: {error.strerror}. Choose another path.", USER_ERROR)


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


def _exit_with(message: str, code: int) -> None:
    print(f"shiftproof: {message}", file=sys.stderr)
    sys.exit(code)
