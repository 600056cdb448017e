"""Checks that two versions of the package compute the same results on one machine.

    python tools/compare_versions.py collect OUT [--source PATH/TO/src]   run the commands with one source tree
    python tools/compare_versions.py compare BEFORE AFTER                 compare two such outputs

``collect`` runs the demo (seed 0), zeroshot, finetune, sweep, evaluate, a merge of two files and a study of two runs.
``compare`` ignores versions, schema numbers, durations and fingerprints, which name the same classifier differently
from one version to the next; everything else must be equal, and the merged file must have the same bytes. It exits
with 1 otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

STUDY = {
    "run": {"suite": "emoji-development-1", "limit": 64, "alphas": [0, 0.5, 1], "finetune": {"epochs": 1}},
    "grid": {"finetune.lr": [1e-3, 2e-3]},
}
# Entries that may differ: versions, schema numbers, which some files of version 0.1 lack, durations, and the
# fingerprints that identify a classifier.
IGNORED = {"versions", "schema", "seconds", "fingerprint", "shiftproof"}
FINGERPRINT = re.compile(r"(v\d+:)?[0-9a-f]{64}")
SHORT = ["--set", "finetune.epochs=2", "--set", "limit=200"]


def collect(out: Path, source: Path | None) -> None:
    """Runs every command that has not finished yet, each with a separate output directory."""
    out.mkdir(parents=True, exist_ok=True)
    study = out / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    data = ["--suite", "emoji-development-1"]
    commands = {
        "zeroshot": ["zeroshot", "tiny", *data, "--set", "limit=200"],
        "finetune": ["finetune", "tiny", *data, *SHORT],
        "sweep": ["sweep", out / "zeroshot", out / "finetune", *data, "--alphas", "5", "--set", "limit=200"],
        "evaluate": ["evaluate", out / "finetune", "--test", "corrupted:noise:3:emoji-development-1"],
        "merged.safetensors": [
            *("merge", out / "zeroshot" / "model.safetensors", out / "finetune" / "model.safetensors"),
            *("--alpha", "0.3"),
        ],
        "study": ["study", study],
        "demo": ["demo", "--seed", "0"],
    }
    environment = dict(os.environ)
    if source is not None:
        environment["PYTHONPATH"] = str(source.resolve())
    for name, command in commands.items():
        done = out / f"{name}.done"
        if not done.is_file():
            arguments = [*map(str, command), "--out", str(out / name)]
            print("shiftproof", *arguments, flush=True)
            subprocess.run([sys.executable, "-m", "shiftproof", *arguments], check=True, env=environment)
            done.touch()


def results(folder: Path) -> dict[str, Any]:
    """Every JSON result under a folder without the entries that may differ, and digests of weights and predictions."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        # stages.json holds durations only.
        if "checkpoints" in path.parts or path.name == "stages.json" or not path.is_file():
            continue
        if path.suffix == ".json":
            text = path.read_text(encoding="utf-8").replace(str(folder), "OUT")  # merge.json names its inputs
            contents[name] = comparable(json.loads(text))
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            contents[name] = [comparable(json.loads(line)) for line in lines]
        elif path.suffix in (".safetensors", ".npz", ".csv"):
            contents[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return contents


def comparable(value: Any) -> Any:
    """A JSON value without the entries that may differ between versions."""
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items() if key not in IGNORED}
    if isinstance(value, str) and FINGERPRINT.fullmatch(value):
        return "FINGERPRINT"
    return [comparable(entry) for entry in value] if isinstance(value, list) else value


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """The differences between two values, each as a dotted path with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after}, key=str)
        return [d for key in keys for d in differences(before.get(key), after.get(key), f"{place}.{key}".strip("."))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{place}[{i}]")]
    return [] if before == after else [f"{place}: {str(before)[:60]} before, {str(after)[:60]} after"]


def compare(before: Path, after: Path) -> int:
    """Prints every difference and returns the exit code."""
    first, second = results(before), results(after)
    if not any(name.startswith("demo/") for name in first):
        print(f"{before} contains no finished demo. Run `collect` first.")
        return 2
    different = 0
    for name in sorted({*first, *second}):
        lines = differences(first.get(name), second.get(name))
        different += bool(lines)
        for line in lines[:5]:
            print(f"{name}: {line}")
    print(f"{len(first)} files before, {len(second)} after; {different} differ.")
    return int(different > 0)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("out", type=Path)
    collecting.add_argument("--source", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "collect":
        collect(options.out, options.source)
    else:
        sys.exit(compare(options.before, options.after))


if __name__ == "__main__":
    main()
