"""The lowest versions that pyproject.toml allows, for docs/installing.md and for an environment to test them in.

    python tools/oldest.py                 write the table of docs/installing.md
    python tools/oldest.py --constraints   print the constraints with which pip installs these versions

Packages that only developers need (the extra ``dev``) are left out, and so is what the other packages require.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "installing.md"
START, END = "<!-- floors: python tools/oldest.py -->", "<!-- end of floors -->"
_REQUIREMENT = re.compile(r"([\w.-]+)(>=|==)([\w.]+)")


def project() -> dict[str, Any]:
    """The table ``project`` of pyproject.toml."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def floors(requirements: Sequence[str], name: str) -> dict[str, str]:
    """The lowest version of every required package, by its name; extras of the project ``name`` itself are left out.

    Raises a ValueError for a requirement that has no lowest version.
    """
    found = {}
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match:
            found[match[1]] = match[3]
        elif not requirement.startswith(f"{name}["):
            raise ValueError(f"{requirement} has no lowest version. Write one, as in numpy>=1.26.")
    return found


def by_extra(of: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The lowest versions by extra; those of the package itself come first, under an empty name."""
    extras = {"": of["dependencies"], **of["optional-dependencies"]}
    return {extra: floors(needed, of["name"]) for extra, needed in extras.items() if extra != "dev"}


def constraints(of: Mapping[str, Any]) -> str:
    """The file that makes pip install the lowest version of every package with which all extras can be installed."""
    highest: dict[str, str] = {}
    for needed in by_extra(of).values():
        for name, version in needed.items():
            highest[name] = max(version, highest.get(name, version), key=_numbers)
    return "".join(f"{name}=={version}\n" for name, version in highest.items())


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def page_with_table(content: str) -> str:
    """The page with its table brought up to date."""
    rows = []
    for extra, needed in by_extra(project()).items():
        versions = ", ".join(f"{name} {version}" for name, version in needed.items())
        rows.append(f"| {f'`{extra}`' if extra else 'always'} | {versions} |")
    before, rest = content.split(START)
    table = "\n".join(["| extra | lowest versions |", "|---|---|", *rows])
    return f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--constraints" in sys.argv[1:]:
        print(constraints(project()), end="")
    else:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
