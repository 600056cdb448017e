"""File names and CSV files that people have, and the tables of ``docs/inputs.md``, which ``tools/inputs.py`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.checkpoint_cases import checkpoint_table
from support.pictures import PICTURES
from support.shard_cases import shard_table
from support.shards import CONTAINERS

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"


@dataclass(frozen=True)
class FileCase:
    """A file at ``name`` below a folder of classes: whether it is read, and the reason that is given otherwise.

    The content is a PNG unless ``content`` is given.
    """

    name: str
    outcome: str
    reason: str | None = None
    content: bytes | None = None


HIDDEN, LEFTOVER = "hidden", "left by an operating system or a tool"
FILES = (
    FileCase("lemon/1.png", "is read"),
    FileCase("lemon/2.PNG", "is read; the case of a suffix does not matter"),
    FileCase("lemon/market/3.png", "is read; folders below a class folder belong to the class"),
    FileCase("lemon/4.jfif", "is read; so are .jpe, .jp2, .avif and all other suffixes of the formats listed below"),
    FileCase("lemon/5", "is read: a file without a suffix is a picture if its content is"),
    FileCase("lemon/LICENSE", "is skipped", "without a suffix whose content is no picture", b"Apache License"),
    FileCase("lemon/notes.txt", "is skipped", "with the suffix .txt", b"ripe"),
    FileCase("lemon/6.heic", "is skipped, unless a plugin for it is registered with Pillow", "with the suffix .heic"),
    FileCase("lemon/.7.png", "is skipped", HIDDEN),
    FileCase("lemon/.git/8.png", "is skipped, as is every hidden folder at any depth", HIDDEN),
    FileCase("lemon/.ipynb_checkpoints/9.png", "is skipped", LEFTOVER),
    FileCase("lemon/._1.png", "is skipped", LEFTOVER, b"\0\5\x16\7"),
    FileCase("lemon/Thumbs.db", "is skipped", LEFTOVER, b"\xd0\xcf"),
    FileCase("lemon/.DS_Store", "is skipped", LEFTOVER, b"\0\0\0\1"),
    FileCase("__MACOSX/lemon/._1.png", "is skipped; the folder is not a class", LEFTOVER, b"\0\5\x16\7"),
    FileCase("10.png", "is skipped", "beside the class folders"),
)


@dataclass(frozen=True)
class CsvCase:
    """The rows of a CSV file below its header, and the message that refuses it, or None if it is read."""

    what: str
    rows: str
    message: str | None = None
    header: str = "filepath,label"
    documented: str = ""


CSVS = (
    CsvCase("a path relative to the CSV's folder, an absolute path, or one that begins with `~`", "1.png,lemon"),
    CsvCase("a blank line", "1.png,lemon\n\n2.png,pear"),
    CsvCase("a field with a comma, in quotation marks", '1.png,"lemon, ripe"'),
    CsvCase(
        "columns separated by semicolons or tabs",
        "1.png;lemon",
        r"mine\.csv has the columns .*Separate the columns by commas",
        "filepath;label",
        documented="the file and its columns",
    ),
    CsvCase(
        "a field with a comma, without quotation marks",
        "1.png,lemon\n2.png,lemon,ripe",
        r"line 3 of .*mine\.csv has 3 fields, its header 2",
        documented="the file and the line",
    ),
    CsvCase(
        "a quotation mark that is never closed",
        '1.png,lemon\n2.png,"pear\n' + "3.png,pear\n" * 20_000,
        r"line 3 of .*mine\.csv is not valid CSV",
        documented="the file and the line on which the row begins",
    ),
    CsvCase(
        "two stray quotation marks, between which rows are lost",
        '1.png,"lemon\n2.png,pear\n3.png,pear"\n4.png,lemon',
        r"the label on line 2 of .*mine\.csv runs over several lines",
        documented="the file and the line on which the row begins",
    ),
    CsvCase(
        "an empty field",
        "1.png,lemon\n2.png,",
        r"line 3 of .*mine\.csv lacks its label",
        documented="the file, the line and the column",
    ),
    CsvCase(
        "a file that occurs twice, be it as `1.png`, `./1.png` or `a/../1.png`",
        "1.png,lemon\n2.png,pear\n./1.png,lemon",
        r"mine\.csv names a file twice: '1\.png' on line 2 and '\./1\.png' on line 4",
        documented="the file and both lines",
    ),
    CsvCase(
        "text that is not UTF-8", "1.png,\udce9t\udce9", r"line 2 of .*mine\.csv is not UTF-8", documented="the line"
    ),
)


def tables() -> dict[str, str]:
    """The generated tables of the page, by the name in their marks."""
    return {
        "pictures": _pictures(),
        "files": _files(),
        "csv": _csv(),
        "shards": shard_table(),
        "checkpoints": checkpoint_table(),
    }


def page_with(content: str) -> str:
    """The page with its generated tables brought up to date."""
    for name, table in tables().items():
        start, end = f"<!-- {name}: python tools/inputs.py -->", f"<!-- end of {name} -->"
        before, rest = content.split(start)
        content = f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"
    return content


def _pictures() -> str:
    suffixes: dict[tuple[str, str, str], list[str]] = {}
    for case in PICTURES:
        counted = ", ".join(case.conversions) or "not counted"
        suffixes.setdefault((case.name, case.read_as, "stops" if "refused" in case.read_as else counted), []).append(
            f"`{case.suffix}`"
        )
    rows = [f"| {name} | {', '.join(of)} | {read} | {counted} |" for (name, read, counted), of in suffixes.items()]
    rows += [f"| any of these in {c.name} | `{c.suffix}` | as the file is | as the file is |" for c in CONTAINERS]
    return "\n".join(["| picture | tested with | is read as | counted as |", "|---|---|---|---|", *rows])


def _files() -> str:
    rows = [f"| `{case.name}` | {case.outcome} | {case.reason or ''} |" for case in FILES]
    return "\n".join(["| file | what happens | reason in the warning |", "|---|---|---|", *rows])


def _csv() -> str:
    rows = [
        f"| {case.what} | {f'is refused; the message names {case.documented}' if case.message else 'is read'} |"
        for case in CSVS
    ]
    return "\n".join(["| row | what happens |", "|---|---|", *rows])
