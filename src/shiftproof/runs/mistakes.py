"""Mistakes in run files and study files in words: the key, its value, the rule and the way out.

Pydantic finds them, and names types and branches of unions that mean nothing to a user.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from shiftproof.errors import nearest, point_hint

_BRANCHES = ("str", "SuiteFile", "int", "float", "list[str]", "list[float]", "list[any]", "Between")
# The rules that values break, by the beginning of pydantic's name of the mistake.
_RULES = {
    "int_": "a whole number, such as 10",
    "float_": "a number, such as 0.1",
    "finite_number": "a finite number, such as 0.1",
    "bool_": "true or false",
    "string_": "a text",
    "list_": "a list in brackets, such as [a, b]",
    "tuple_": "two numbers in brackets, such as [0.9, 1.0]",
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "{le:g} or less",
    "less_than": "less than {lt:g}",
    "literal_error": "{expected}",
    "too_short": "a list with at least {min_length} in it",
    "too_long": "a list with at most {max_length} in it",
    "model_type": "a section of keys and values",
    "dataclass_type": "a section of keys and values",
    "dict_type": "a section of keys and values",
}


def explained(error: ValidationError, sections: Mapping[str, Any], what: str) -> str:
    """Turns pydantic's errors into sentences with the full key; ``sections`` lists the known keys of each section.

    ``what`` is what a key is called, such as a run-file key. A value that fits none of several types is one mistake,
    with the rules of all of them.
    """
    sentences: dict[str, str] = {}
    broken: dict[str, tuple[Any, list[str]]] = {}
    for problem in error.errors():
        location, branch = _location(problem["loc"])
        if branch and _other_branch(branch, problem["input"]):
            continue
        key = ".".join(location)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            sentence = f"unknown {what} {key!r}. {_nearest_key(location[-1], '.'.join(location[:-1]), sections)}"
        elif problem["type"] in ("missing", "missing_argument"):
            sentence = f"the {what} {key!r} is missing. Add it."
            if location[-1].isdigit():
                key = ".".join(location[:-1])
                sentence = f"the {what} {key!r} lacks its value number {int(location[-1]) + 1}. Add it."
        elif problem["type"] == "value_error":
            sentence = problem["msg"].removeprefix("Value error, ")
        else:
            _, rules = broken.setdefault(key, (problem["input"], []))
            if (rule := _rule(problem)) not in rules:
                rules.append(rule)
            sentence = ""  # it is made when all rules of the value are known
        sentences[sentence or key] = sentence
    for key, (value, rules) in broken.items():
        hint = point_hint(value) or _hint(value, rules)
        sentences[key] = f"the {what} {key!r} is {_shown(value)}; it must be {', or '.join(rules)}.{hint}"
    return "\n".join(sentences.values())


def _location(place: tuple[int | str, ...]) -> tuple[list[str], str]:
    """The parts of a key, and the branch of a union, which pydantic names by its type although it is no key."""
    parts = [str(part) for part in place]
    index = 3 if parts[:2] == ["sample", "keys"] else 1
    index += 1 if parts[index + 1 : index + 2] and parts[index + 1] in _BRANCHES else 0
    branch = parts.pop(index) if parts[index:] and parts[index] in _BRANCHES else ""
    if len(parts) > 1 and parts[-1] in _BRANCHES:  # a union within the branch
        parts.pop()
    return parts, branch


def _other_branch(branch: str, value: Any) -> bool:
    """Whether a value was clearly not meant for a branch, such as a section where a name is allowed as well."""
    return (branch in ("str", "int") and isinstance(value, (dict, list))) or (
        branch == "list[any]" and isinstance(value, dict)
    )


def _rule(problem: Mapping[str, Any]) -> str:
    beginning = next((name for name in _RULES if problem["type"].startswith(name)), None)
    if beginning is None:
        return str(problem["msg"]).lower()
    return _RULES[beginning].format(**problem.get("ctx", {}))


def _shown(value: Any) -> str:
    """A value as YAML has it, where that differs from Python.

    >>> _shown(None), _shown(True), _shown("fast")
    ('empty', 'true', "'fast'")
    """
    return "empty" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _hint(value: Any, rules: list[str]) -> str:
    """What to do about a value that is empty, a number in place of a text, or misspelt."""
    if value is None:
        return " Give it a value, or remove the key."
    if isinstance(value, int | float) and _RULES["string_"] in rules:
        return " Put it in quotation marks if it is a text."
    words = rules[0].replace("'", "").replace(" or ", ", ").split(", ")
    hint = nearest(value, words) if isinstance(value, str) and len(words) > 1 else ""
    return f" {hint}" if hint.startswith("Did") else ""


def _nearest_key(key: str, section: str, sections: Mapping[str, Any]) -> str:
    """Suggests the nearest key of a section, or lists all of them and says where they are described."""
    suggestion = nearest(key, known := list(_known(section, sections)), len(known))
    return suggestion if suggestion.startswith("Did") else f"{suggestion} docs/run-file.md describes them."


def _known(section: str, sections: Mapping[str, Any]) -> Iterable[str]:
    """Returns the keys of a section; one with a name chosen by the user, such as a shift, has those of its parent."""
    within = [name for name in sections if section == name or section.startswith(f"{name}.")]
    return sections[max(within, key=len)] if within else ()
