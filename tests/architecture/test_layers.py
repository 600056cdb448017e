"""The table of layers in the design, held by parsing every import, also those inside functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "shiftproof"
# Packages from the bottom up, each with its modules from the bottom up: a module imports what stands before it.
LAYERS: dict[str, tuple[str, ...]] = {
    "": ("errors", "seeding", "storage", "progress"),
    "records": (
        *("codec", "accuracy", "paths", "rules", "pretraining", "runs", "merges", "backgrounds", "windows"),
        "benchmarks",
        "checkups",
        *("comparisons", "diagnosis", "studies", "summaries"),
    ),
    "weights": ("arithmetic", "schedules", "signatures", "wrappers", "quantization", "checkpoints"),
    "data": (
        *(
            "paths",
            "spelling",
            "wordnet",
            "labels",
            "class_lists",
            "loading",
            "sources",
            "decoding",
            "image_cache",
            "reading",
            "transforms",
            "pictures",
            "formats.addresses",
            "formats.splits",
            "formats.entries",
            "formats.folder",
            "formats.csv",
            "formats.wds",
            "formats.hf",
            "formats.registry",
            "protocols",
            "sets",
            "held_out",
            "readable",
            "augmentations",
            "batches",
            "streams",
            "corruptions",
            "photometric",
        ),
        *("families.classes", "families.folders", "families.imagenet", "families.objectnet", "families.corruptions"),
        *("families.backgrounds", "families.cifar", "families.torchvision", "families.wilds", "families.domains"),
        *("families.registry", "families.sizes"),
        *("emoji.drawings", "emoji.views", "emoji.sets", "solar_cells", "captions"),
        *("duplicates", "near_duplicates", "suites", "export"),
    ),
    "mixing": ("masks", "plans", "targets", "methods", "named"),
    "models": (
        *("devices", "memory", "precision", "names", "prompts", "tiny", "local_weights"),
        *("processors", "transformers", "clip"),
        *("torchvision_models", "lite0", "encoders", "expectations", "classifier", "identity", "heads"),
        *("text_encoding", "head_cache", "zero_shot", "text_towers"),
        *("directories", "cards"),
        *("export.formats", "export.torchscript", "export.onnx", "export.timm", "export.open_clip"),
        *("export.clip_conversion", "export.transformers", "export.exporting", "export.card", "export.hub"),
    ),
    "training": ("distributed", "hardware", "checkpoints", "log", "engine"),
    "evaluation": (
        *("blocks", "intervals", "proportions", "significance", "robustness", "calibration", "metrics"),
        "benchmark_metrics",
        *("predictions", "set_metrics", "scoring", "sharing", "inference", "retrieval"),
    ),
    "pretraining": ("settings", "towers", "loss", "recall", "loop"),
    "finetuning": ("settings", "anchor", "averages", "depths", "probe", "recipes", "loop"),
    "ensembling": ("greedy", "heads", "ensembles", "batch_norm", "soups", "interpolation", "path", "rules"),
    "merging": ("adapters", "methods", "layouts", "alignment", "streams", "outputs", "files"),
    "diagnosis": (
        *("logits", "means", "agreement", "overrides", "cka", "layers", "connectivity", "plane", "evidence"),
        *("movement", "backgrounds", "grids", "grad_cam", "cam"),
        *("windows", "strong_edge", "baselines"),
    ),
    "report": (
        *(
            "tables",
            "checkups",
            "comparisons",
            "guessing",
            "verdicts",
            "accuracy",
            "paths",
            "seeds",
            "figures",
            "layers",
            "plane",
            "windows",
        ),
        *("overrides", "agreement", "connectivity", "performance", "movement", "diagnoses"),
        *("samples", "studies", "page"),
    ),
    "runs": (
        *(
            "directory",
            "yaml_text",
            "locations",
            "keys",
            "mistakes",
            "file",
            "requests",
            "starts",
            "inputs",
            "samples",
            "evidence",
            "predictions",
        ),
        *("checks", "doctor", "doubts", "pipeline", "finished", "networks", "parts", "comparisons", "diagnose"),
        *("benchmarks", "scores", "sweeps", "stages", "tables", "retrieve", "interventions", "exports"),
    ),
    "studies": ("file", "spreads", "members", "soups", "cluster", "study"),
    "cli": (
        *("failures", "group", "choices", "parsing", "options", "console"),
        *(
            "start",
            "stages",
            "sweeps",
            "predictions",
            "retrieval",
            "weights",
            "diagnosis_options",
            "diagnose",
            "studies",
            "data",
            "exports",
            "checkups",
            "app",
        ),
    ),
}
ORDER = [f"{package}.{module}".strip(".") for package, modules in LAYERS.items() for module in modules] + ["__main__"]
NO_TORCH = (
    "records.",
    "diagnosis.agreement",
    "diagnosis.logits",
    "diagnosis.means",
    "diagnosis.overrides",
    "diagnosis.cka",
    "diagnosis.connectivity",
    "diagnosis.evidence",
    "errors",
    "storage",
    "progress",
    "evaluation.blocks",
    "evaluation.predictions",
    "evaluation.intervals",
    "evaluation.significance",
    "evaluation.robustness",
    "evaluation.calibration",
    "report.",
)
STRAY = {"utils", "helpers", "base", "common", "misc"}


def breaches(package: Path) -> list[str]:
    """Every upward import, import through a package, unlisted module and stray name under a package folder."""
    result = []
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        if path.stem in STRAY:
            result.append(f"{module}: a module's name must say what is in it")
        if path.stem == "__init__":
            continue
        if module not in ORDER:
            result.append(f"{module} is not in the table of layers")
            continue
        for target in imported(path):
            if target.split(".")[0] == "torch" and module.startswith(NO_TORCH):
                result.append(f"{module} imports torch")
            if target.split(".")[0] == "shiftproof":
                known = longest(target.removeprefix("shiftproof."))
                if not known:
                    result.append(f"{module} imports {target} through a package: name the module that defines it")
                elif ORDER.index(known) >= ORDER.index(module):
                    result.append(f"{module} imports {known}, which stands above it")
    return result


def imported(path: Path) -> list[str]:
    """All modules that a file imports anywhere, but for type checkers alone."""
    names = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def longest(target: str) -> str | None:
    """The listed module that an imported name belongs to."""
    parts = target.split(".")
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in ORDER), None)


def test_imports_point_downward() -> None:
    assert breaches(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("weights/arithmetic", "from shiftproof.models.clip import load_clip", "models.clip, which stands above"),
        ("data/labels", "def f():\n    import shiftproof.runs.pipeline", "runs.pipeline, which stands above"),
        ("records/runs", "import torch", "imports torch"),
        ("report/page", "def f():\n    from torch import nn", "imports torch"),
        ("runs/pipeline", "from shiftproof.data import ImageSet", "shiftproof.data.ImageSet through a package"),
        ("runs/pipeline", "from shiftproof import load_clip", "shiftproof.load_clip through a package"),
        ("runs/pipeline", "import shiftproof as sp", "shiftproof through a package"),
        ("data/utils", "", "a module's name must say"),
        ("novelty", "", "not in the table"),
    ],
)
def test_a_planted_breach_is_caught(tmp_path: Path, module: str, source: str, message: str) -> None:
    file = tmp_path / f"{module}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    assert any(message in breach for breach in breaches(tmp_path))
