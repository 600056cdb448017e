"""The public interface: what the stubs declare exists, is typed and documented, and costs nothing to import."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import shiftproof

PACKAGE = Path(shiftproof.__file__).parent
# A list of the names at the top is read at a glance; whatever else is public belongs to a package.
LARGEST_TOP = 50
# A shape such as (B, C, H, W) or (N,), or the word itself; arrays, and mappings of names to arrays.
SHAPE = re.compile(r"\(`*(?:[A-Z](?:_\w)?|[nm]|\d+|rows)`*,[^()]*\)|\bshapes?\b")
ARRAY = re.compile(r"\b(Tensor|NDArray)\b")
ARRAYS_BY_NAME = re.compile(r"(Mapping|dict)\[str, Tensor\]")
TYPE_CHECKS = ("require_classifier", "require_clip", "require_set", "require_suite")
PAPER = re.compile(r"arXiv|et al\.|CVPR|[A-Z]\w+ (19|20)\d\d")
# The functions and classes that compute what a paper has defined.
METHODS = (
    *("interpolate_weights", "average_weights", "model_stock"),
    *("wise_ft", "output_ensemble", "uniform_soup", "greedy_soup", "model_stock_soup", "reestimate_batch_norm"),
    *("SmoothMix", "CutMix", "MixUp", "Cutout", "zero_shot_classifier", "finetune", "pretrain"),
    *("linear_cka", "calibration_error", "effective_robustness", "relative_robustness", "override_rates"),
    *("class_activation_map", "error_barrier", "mcnemar_test", "holm_correction", "brier_score"),
)
HEAVY = ("torch", "torchvision", "numpy", "scipy", "pydantic", "open_clip", "timm", "matplotlib")


def module_name(path: Path) -> str:
    """The dotted name of a source file, a stub or a package's ``__init__``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


STUBS = {module_name(path): path for path in sorted(PACKAGE.rglob("__init__.pyi"))}


def declared(stub: Path) -> dict[str, str]:
    """The names that a stub imports, each with the module, relative to the package, that it names as its home."""
    names = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: node.module or "" for alias in node.names})
    return names


def listed_names(stub: Path) -> list[str]:
    """The names in a stub's ``__all__``."""
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{stub} has no __all__")


def public_objects() -> Iterator[tuple[str, Any]]:
    """Every function and class that a stub declares, by its full name."""
    for package, stub in STUBS.items():
        for name, home in declared(stub).items():
            if home:
                yield f"{package}.{name}", getattr(importlib.import_module(package), name)


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function that a stub declares, and every public method of the classes that it declares."""
    for name, value in public_objects():
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for key, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(function) and not key.startswith("_"):
                    yield f"{name}.{key}", function


@pytest.mark.parametrize("package", STUBS)
def test_every_declared_name_resolves(package: str) -> None:
    module, names = importlib.import_module(package), declared(STUBS[package])
    assert sorted(names) == sorted(listed_names(STUBS[package])) == sorted(module.__all__)
    assert set(names) <= set(dir(module))
    for name, home in names.items():
        value = getattr(module, name)
        if not home:
            assert isinstance(value, ModuleType)
            continue
        assert value is getattr(importlib.import_module(f"{package}.{home}"), name)
        assert value.__module__ == f"{package}.{home}", f"{package}.{name} is declared where it is not defined"


def test_a_name_that_is_not_declared_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="wise_fit"):
        shiftproof.wise_fit  # noqa: B018


def test_every_package_with_public_names_has_a_stub() -> None:
    folders = {module_name(path) for path in PACKAGE.glob("*/__init__.py")} - {"shiftproof.cli"}
    assert folders | {"shiftproof"} == set(STUBS)
    assert all(importlib.import_module(package).__doc__ for package in STUBS)


def test_the_top_is_short_and_every_name_there_is_in_a_package_too() -> None:
    names = {name: home for name, home in declared(STUBS["shiftproof"]).items() if home}
    assert len(names) <= LARGEST_TOP
    for name, home in names.items():
        if home != "errors":
            assert name in declared(STUBS[f"shiftproof.{home.split('.')[0]}"])


def test_every_public_function_is_typed() -> None:
    for name, function in public_functions():
        signature = inspect.signature(function)
        bare = [
            key
            for key, parameter in signature.parameters.items()
            if parameter.annotation is inspect.Parameter.empty and key not in {"self", "cls"}
        ]
        assert not bare, f"{name} has parameters without a type: {bare}"
        assert signature.return_annotation is not inspect.Signature.empty, f"{name} has no return type"
        assert typing.get_type_hints(function), name


def test_device_seed_and_level_are_keywords_with_one_default() -> None:
    defaults = {"device": "auto", "level": 0.95}
    cpu = {"shiftproof.mixing.anchor_weights"}  # makes a tensor and runs no model
    for name, function in public_functions():
        if name == "shiftproof.models.resolve_device":  # takes nothing else
            continue
        for key, parameter in inspect.signature(function).parameters.items():
            if key in {"device", "seed", "level"}:
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, f"{key} of {name} is not keyword-only"
            if key in defaults:
                default = "cpu" if name in cpu else defaults[key]
                assert parameter.default == default, f"{key} of {name} has another default than {default}"
            if key == "device":
                assert parameter.annotation == "str | torch.device", f"device of {name} has another type"


def test_every_public_function_and_class_is_documented() -> None:
    undocumented = [name for name, value in [*public_objects()] if not value.__doc__]
    assert not undocumented


def test_docstrings_name_the_shapes_of_arrays() -> None:
    """A state dict has entries of any shape, so its type says enough."""
    silent = [
        name
        for name, function in public_functions()
        if ARRAY.search(ARRAYS_BY_NAME.sub("", str(inspect.signature(function))))
        and not SHAPE.search(inspect.getdoc(function) or "")
    ]
    assert not silent


def test_docstrings_say_what_is_raised() -> None:
    """Every function refuses arguments of another type, so only what goes beyond that needs a sentence."""
    silent = [
        name
        for name, function in public_functions()
        if raises_on_its_own(function) and not re.search(r"\b(raises?|errors?)\b", inspect.getdoc(function) or "", re.I)
    ]
    assert not silent


def raises_on_its_own(function: Callable[..., Any]) -> bool:
    """Whether a function raises an error, or requires more of an argument than its type."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if re.match(r"_?require_", called) and called not in TYPE_CHECKS:
            return True
    return False


@pytest.mark.parametrize("name", METHODS)
def test_docstrings_of_methods_name_the_paper(name: str) -> None:
    (method,) = {value for full, value in public_objects() if full.rsplit(".", 1)[1] == name}
    assert PAPER.search(method.__doc__)


def test_no_function_has_the_name_of_its_module() -> None:
    for path in PACKAGE.rglob("*.py"):
        functions = [
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        ]
        assert path.stem not in functions, f"{module_name(path)} defines a function of its own name"
        assert path.name != "__init__.py" or path.parent.name not in functions


@pytest.mark.parametrize("package", STUBS)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
