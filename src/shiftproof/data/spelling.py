"""Spellings of names: which ones are surely the same, which may be, and in which characters they differ."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

# Letters of other scripts that look like Latin ones in most fonts, and signs that keyboards and editors exchange: the
# most frequent confusable characters of Unicode Technical Standard 39. Capitals have a table of their own, since some
# of them look like another Latin letter than their lower case does.
_SMALL = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b"  # Cyrillic
    "\u03bf\u03b1\u03bd\u03b9\u03c1\u03c5\u0131"  # Greek, and the dotless i
    "\u2018\u2019\u02bc\u0060\u2032\u201c\u201d\u2010\u2012\u2013\u2014\u2212",  # quotes and dashes
    "aeopcyxijshdq" + "oavipui" + "'" * 5 + '"' * 2 + "-" * 5,
)
_CAPITAL = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408\u0405"  # Cyrillic
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",  # Greek
    "ABEKMHOPCTXIJS" + "ABEZHIKMNOPTYX",
)
_SEPARATORS = re.compile(r"(?<=\w)[-_\s]+(?=\w)")  # between two words; the sign of a number is none


def normal_name(name: str) -> str:
    r"""The name in Unicode's composed form (NFC), without leading and trailing blanks.

    Some systems store a file's name in the decomposed form, and a spreadsheet keeps a trailing blank: such spellings
    cannot be told apart on screen and are surely the same name.

    >>> normal_name("cafe\u0301 ") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name).strip()


def likenesses(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of different names that may mean the same, each later name with the first that it resembles.

    Two names resemble each other if they differ in case, in blanks, underscores and hyphens, in invisible characters,
    or in characters that look alike.

    >>> likenesses(["Lemon", "pear", "lemon", "red_apple", "red apple"])
    [('Lemon', 'lemon'), ('red_apple', 'red apple')]
    """
    first: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        earlier = [first.setdefault(skeleton, name) for skeleton in _skeletons(name)]
        pairs += [(other, name) for other in earlier if other != name][:1]
    return pairs


def difference(first: str, second: str) -> str:
    """The characters in which two names differ, with their code points and Unicode names.

    >>> difference("Lemon", "lemon")
    "'L' (U+004C LATIN CAPITAL LETTER L) and 'l' (U+006C LATIN SMALL LETTER L)"
    >>> difference("lemons", "lemon")
    "'s' (U+0073 LATIN SMALL LETTER S) and nothing"
    """
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    changed = [(first[a:b], second[c:d]) for kind, a, b, c, d in matcher.get_opcodes() if kind != "equal"]
    return "; ".join(f"{_described(before)} and {_described(after)}" for before, after in dict.fromkeys(changed))


def _skeletons(name: str) -> tuple[str, str]:
    """What similar spellings have in common: the name without case, separators and invisible characters.

    The first maps small letters that look alike to one, the second capitals.
    """
    compatible = unicodedata.normalize("NFKC", name)
    spellings = (compatible.casefold().translate(_SMALL), compatible.translate(_CAPITAL).casefold())
    first, second = (_SEPARATORS.sub(" ", "".join(filter(_is_visible, spelling))).strip(" _") for spelling in spellings)
    return first, second


def _is_visible(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) not in ("Cf", "Cc")


def _described(text: str) -> str:
    named = (f"{c!r} (U+{ord(c):04X} {unicodedata.name(c, 'without a name')})" for c in text)
    return ", ".join(named) or "nothing"
