"""The reference of all keys is complete and up to date."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from support import processes

import shiftproof as sp

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "run-file.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_settings_give() -> None:
    done = processes.run("script", ROOT / "tools" / "run_file.py", "--check")
    assert done.returncode == 0, done.stderr


def test_every_key_of_a_written_run_file_is_on_the_page() -> None:
    reference = {"train": "folder:a", "validation": "folder:b", "test": "folder:c"}
    settings = {
        "suite": {"reference": reference, "shifts": {"NAME": {"data": "folder:d"}}},
        "pretrain": {"data": "emoji"},
    }
    written = yaml.safe_load(sp.RunFile.resolve(settings).to_yaml())

    def keys(section: object, prefix: str = "") -> set[str]:
        if not isinstance(section, dict):
            return set()
        return {key for name in section for key in (prefix + name, *keys(section[name], f"{prefix}{name}."))}

    listed = set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE))
    assert keys(written) - {"suite.shifts.NAME"} <= listed


def test_the_readme_links_the_page() -> None:
    assert "(docs/run-file.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
