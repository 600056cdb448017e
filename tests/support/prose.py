"""The measured numbers in the text of a page, outside of what is generated and of examples."""

from __future__ import annotations

import re

GENERATED = re.compile(r"<!-- ([\w-]+): python tools/\w+\.py -->.*?<!-- end of \1 -->", re.DOTALL)
EXAMPLES = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->|https?://\S+", re.DOTALL)
_COUNT = (
    r"(?:\d[\d,]*(?:\.\d+)?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    r"twenty|half a|a hundred|a thousand)"
)
_UNIT = (
    r"(?:%|per cent|points?|times|images? (?:a|per) second|images/s|milliseconds?|seconds?|minutes?|hours?|ms|s|"
    r"[KMG]B|M parameters)"
)
MEASURED = re.compile(
    rf"{_COUNT} (?:{_UNIT})(?!\w)|(?<![A-Za-z]-)\b\d+\.\d+|{_COUNT} of (?:the )?{_COUNT}(?!\w)", re.IGNORECASE
)


def prose(page: str) -> str:
    """The text that somebody wrote by hand, on one line."""
    return " ".join(EXAMPLES.sub(" ", GENERATED.sub(" ", page)).split())


def measured_numbers(page: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """What looks like a measured number in the prose of a page, with its surroundings, without the allowed phrases."""
    text = prose(page)
    for phrase in allowed:
        text = text.replace(phrase, " ")
    return [text[max(0, m.start() - 40) : m.end() + 30] for m in MEASURED.finditer(text)]
