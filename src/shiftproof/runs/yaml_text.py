"""YAML in which every key of a section is given once."""

from __future__ import annotations

from typing import Any

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A section of a YAML text gives a key twice; the parser alone would silently take the last value."""


def parse_yaml(text: str) -> Any:
    """Parses YAML into plain values; raises a YAMLError, also for a section that gives a key twice.

    A key may override one that is merged with ``<<``.

    >>> parse_yaml("finetune: {lr: 0.1}")
    {'finetune': {'lr': 0.1}}
    """
    _require_unique_keys(yaml.compose(text, yaml.SafeLoader), set())
    return yaml.safe_load(text)


def _require_unique_keys(node: yaml.Node | None, checked: set[int]) -> None:
    """Raises a DuplicateKeyError for a section under a node; aliases may lead to nodes that are ``checked`` already."""
    if id(node) in checked:
        return
    checked.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _require_unique_keys(entry, checked)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise DuplicateKeyError(
                        f"the key {key.value!r} is given twice, on line {lines[key.value]} and on line {line}. Remove "
                        "one of the two."
                    )
                lines[key.value] = line
            _require_unique_keys(value, checked)
