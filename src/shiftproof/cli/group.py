"""Groups of commands: their help by subject, their failures, and options that commands share as one dataclass."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from typer.core import TyperCommand, TyperGroup

from shiftproof.cli.failures import (
    INTERRUPTED,
    PATH_ERRORS,
    USER_ERROR,
    exit_code_of,
    message_of,
    name_options,
    options_of,
)
from shiftproof.errors import ShiftproofError
from shiftproof.storage import expanded


class CommandGroup(TyperGroup):
    """A group of commands that lists them by subject and reports the errors of the library as a message.

    A mistake of the user ends with exit code 2, a command that Ctrl-C stopped with 130, and a training run that SIGTERM
    stopped with 143. Any other exception is a defect of the program and is not caught.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands, with a section for every subject and the first sentences of each help text."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            subject = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(subject, []).append((name, (command.help or "").split("\n\n")[0]))
        for subject, rows in sections.items():
            with formatter.section(subject):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; the message of an error names the options of the command in place of arguments."""
        try:
            return super().invoke(ctx)
        except ShiftproofError as error:
            _exit_with(name_options(message_of(error), self._options(ctx)), exit_code_of(error))
        except KeyboardInterrupt:
            options = self._options(ctx)
            remedy = " Continue with `resume=True`." if "resume" in options else ""
            _exit_with(name_options(f"interrupted.{remedy}", options), INTERRUPTED)
        except PATH_ERRORS as error:
            _exit_with(f"{error.filename}: {error.strerror}. Choose another path.", USER_ERROR)

    def _options(self, ctx: Any) -> dict[str, str]:
        """The options of the command that is being run."""
        return options_of(self.get_command(ctx, ctx.invoked_subcommand or ""))


class Command(TyperCommand):
    """A command whose help is in words: an argument by its name without a type, and the range of a number."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments and the options, each with its sentence, its default and its range."""
        for kind, title in (("argument", "Arguments"), ("option", "Options")):
            records = [entry.get_help_record(ctx) for entry in self.get_params(ctx) if entry.param_type_name == kind]
            if rows := [(_TYPE.sub("", name), _RANGE.sub(r"\1 or more", text)) for name, text in filter(None, records)]:
                with formatter.section(title):
                    formatter.write_dl(rows)


_TYPE = re.compile(r" <[^<>]*>$")
_RANGE = re.compile(r"x>=(\d+)")


def _exit_with(message: str, code: int) -> None:
    print(f"shiftproof: {message}", file=sys.stderr)
    sys.exit(code)


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for every field of the dataclasses that the function takes.

    Typer reads options from single parameters. Commands that share options declare them once, as the annotated fields
    of a dataclass, and get an instance of it.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    types = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        if is_dataclass(group := types[parameter.name]):
            groups[parameter.name] = group
            parameters += _parameters_of(group)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=types[parameter.name]))

    @functools.wraps(function)
    def command(**values: Any) -> None:
        values = {name: _with_home(value) for name, value in values.items()}
        for name, group in groups.items():
            values[name] = group(**{entry.name: values.pop(entry.name) for entry in fields(group)})
        function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    # An example must be on one line, so that it can be copied; the mark \b prevents click from wrapping it.
    command.__doc__ = re.sub(r"\n\n(.*: shiftproof )", "\n\n\b\n\\1", inspect.getdoc(function) or "")
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _with_home(value: Any) -> Any:
    """A path, or a list of paths, with ~ replaced; a shell does not replace it in --out=~/runs."""
    if isinstance(value, list):
        return [_with_home(entry) for entry in value]
    return expanded(value) if isinstance(value, Path) else value


def _parameters_of(group: Any) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=types[entry.name]
        )
        for entry in fields(group)
    ]
