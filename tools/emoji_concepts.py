"""Writes the list of emoji concepts that the package ships (src/shiftproof/data/emoji/concepts.csv).

    python tools/emoji_concepts.py            write the list
    python tools/emoji_concepts.py --check    fail if the committed list differs

A concept is a single-code-point emoji that OpenMoji draws, Noto Emoji draws and Unicode names, and
that every rendition shows (a drawing without fill has no painting). The random halves whose sketch,
painting and monochrome renditions are withheld from pretraining, and the folds of the development
suite, are drawn here once, with a fixed seed.
"""

from __future__ import annotations

import csv
import io
import random
import sys
import unicodedata

from fontTools.ttLib import TTFont

from shiftproof.data.emoji.drawings import CONCEPTS_FILE, RENDITIONS, noto_emoji_font, openmoji_folder, render

TASK_RANGES = [
    (0x1F32D, 0x1F37F),
    (0x1F400, 0x1F43E),
    (0x1F680, 0x1F6A4),
    (0x1F980, 0x1F9AE),
    (0x1F950, 0x1F96F),
    (0x1F3B7, 0x1F3BB),
]
FOLDS = 4
SMALLEST_VISIBLE_SHARE = 0.02


def derive() -> str:
    """The list of concepts as CSV text."""
    drawn = set(TTFont(noto_emoji_font()).getBestCmap())
    codepoints = sorted(
        int(path.stem, 16)
        for path in openmoji_folder().glob("*.svg")
        if "-" not in path.stem and int(path.stem, 16) in drawn and unicodedata.name(chr(int(path.stem, 16)), "")
    )
    task = [c for c in codepoints if any(low <= c <= high for low, high in TASK_RANGES)]
    visible = [c for c in codepoints if all(_visible_share(c, r) > SMALLEST_VISIBLE_SHARE for r in RENDITIONS)]
    development = [c for c in visible if c not in set(task)]
    draw = random.Random("shiftproof emoji concepts 1")
    withheld = set(draw.sample(task, len(task) // 2)) | set(draw.sample(development, len(development) // 2))
    folds = list(development)
    draw.shuffle(folds)
    fold_of = {c: 1 + i // len(task) for i, c in enumerate(folds) if i < FOLDS * len(task)}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["codepoint", "name", "suite", "fold", "withheld"])
    for c in sorted([*task, *development]):
        suite = "task" if c in set(task) else "development"
        name = unicodedata.name(chr(c)).lower()
        rows.writerow([f"{c:04X}", name, suite, fold_of.get(c, 0), int(c in withheld)])
    return text.getvalue()


def _visible_share(codepoint: int, rendition: str) -> float:
    return float((render(codepoint, rendition)[..., 3] > 30).mean())


if __name__ == "__main__":
    derived = derive()
    if "--check" in sys.argv:
        if derived != CONCEPTS_FILE.read_text(encoding="utf-8"):
            sys.exit("the committed list does not match the installed packages; run `python tools/emoji_concepts.py`")
    else:
        CONCEPTS_FILE.write_text(derived, encoding="utf-8")
    print(f"{len(derived.splitlines()) - 1} concepts")
