"""Arguments from Python: a path or a name where an object belongs is refused, strings are paths, and repr is short."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shiftproof as sp
from shiftproof.diagnosis.windows import WindowSettings

# What an argument of each type is in a call that is right but for one argument.
OBJECTS = (
    "ImageSet",
    "ShiftSuite",
    "Classifier",
    "Clip",
    "Encoder",
    "CaptionedSet",
    "RunFile",
    "StudyFile",
    "Predictor",
)
SPACES = ("data", "models", "evaluation", "finetuning", "ensembling", "diagnosis", "runs", "studies", "pretraining")


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for space in SPACES:
        module = importlib.import_module(f"shiftproof.{space}")
        for name in getattr(module, "__all__", dir(module)):
            if inspect.isfunction(function := getattr(module, name)):
                yield f"{space}.{name}", function
    for name in sp.__all__:
        if inspect.isfunction(function := getattr(sp, name)):
            yield name, function


def misused() -> Iterator[Any]:
    """Every public function with one argument that should be an object and is a text."""
    for name, function in public_functions():
        for parameter in inspect.signature(function).parameters.values():
            if str(parameter.annotation) in OBJECTS:
                yield pytest.param(function, parameter.name, id=f"{name}-{parameter.name}")


@pytest.fixture(scope="module")
def right(tiny: sp.models.Clip) -> dict[str, Any]:
    suite = sp.load_suite("emoji")
    zero = sp.zero_shot_classifier(tiny, suite.classes)
    return {
        "ImageSet": suite.reference.test.subset(range(2)),
        "ShiftSuite": suite,
        "Classifier": zero,
        "Predictor": zero,
        "Clip": tiny,
        "ClassSpace": suite.classes,
        "FinetuneSettings": sp.FinetuneSettings(epochs=1),
        "PretrainSettings": sp.PretrainSettings(steps=1),
        "WindowSettings": WindowSettings(),
    }


def begun(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Calls a function; one that yields checks its arguments when it begins."""
    if inspect.isgenerator(outcome := function(**arguments)):
        next(outcome)


@pytest.mark.parametrize(("function", "wrong"), misused())
def test_a_text_where_an_object_belongs_is_refused(
    function: Callable[..., Any], wrong: str, right: dict[str, Any], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = str(parameter.annotation)
        if parameter.name == wrong:
            arguments[wrong] = "folder:photos"
        elif kind in right:
            arguments[parameter.name] = right[kind]
        elif parameter.default is inspect.Parameter.empty:
            arguments[parameter.name] = {"seed": 0, "corruption": "noise", "severity": 1, "which": 0, "shots": 1}.get(
                parameter.name, tmp_path / "out"
            )
    with pytest.raises(sp.InputError, match="'folder:photos'"):
        begun(function, arguments)
    assert not (tmp_path / "out").exists()


def test_a_path_of_a_public_function_may_be_a_string() -> None:
    only_paths = [
        f"{name}({parameter.name})"
        for name, function in public_functions()
        for parameter in inspect.signature(function).parameters.values()
        if re.fullmatch(r"Path( \| None)?", str(parameter.annotation))
    ]
    assert only_paths == []


def test_a_path_where_a_name_belongs_is_refused() -> None:
    for load in (sp.load_data, sp.load_suite, sp.load_clip, sp.load_encoder, sp.data.load_set):
        with pytest.raises(sp.InputError, match="must be a text such as"):
            load(Path("photos"))  # type: ignore[arg-type]
    with pytest.raises(sp.InputError, match="pass a list of class ids"):
        sp.ClassSpace.from_ids("lemon")
    with pytest.raises(sp.InputError, match="`classifiers` is"):
        sp.uniform_soup("runs")  # type: ignore[arg-type]


def test_strings_are_paths(tmp_path: Path, folders: Path, tiny: sp.models.Clip) -> None:
    classes = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
    zero = sp.zero_shot_classifier(tiny, classes)
    images = sp.load_data(f"folder:{folders}/test")
    assert len(sp.data.unlabelled_set(str(folders / "test"), classes)) == 9
    predictions = sp.predict(zero, images)
    file = str(tmp_path / "logits.npz")
    sp.evaluation.save_predictions(predictions, file)
    assert sp.evaluation.load_predictions(file).ids == images.ids
    sp.save_classifier(zero, str(tmp_path / "zero"))
    scored = sp.runs.run_evaluate(str(tmp_path / "zero"), {"test": f"folder:{folders}/test"}, out=str(tmp_path / "out"))
    assert scored[0].n == 9
    with pytest.raises(sp.InputError, match="does not exist"):
        sp.render_report(str(tmp_path / "absent"))


@pytest.mark.slow
def test_representations_are_short(tiny: sp.models.Clip) -> None:
    suite = sp.load_suite("emoji")
    zero = sp.zero_shot_classifier(tiny, suite.classes)
    predictions = sp.predict(zero, suite.reference.test.subset(range(3)))
    assert repr(suite.reference.test) == "ImageSet('test', 2,136 images of 267 classes, with sources, mask)"
    assert repr(suite.classes).startswith("ClassSpace(267 classes: ")
    assert repr(zero) == "Classifier('tiny', 267 classes, zero-shot head)"
    assert repr(predictions) == "Predictions(3 samples, 267 classes)"
    assert "natural" not in repr(suite) and "sketch 2,136" in repr(suite)
    for value in (suite, suite.classes, suite.reference.test, zero, predictions, tiny):
        assert len(repr(value)) < 600


def test_a_classifier_is_not_overwritten_unless_that_is_wanted(tmp_path: Path, tiny: sp.models.Clip) -> None:
    fruit, sky = (
        sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(names)) for names in (["lemon", "pear"], ["sun", "moon"])
    )
    folder = sp.save_classifier(fruit, tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(sp.InputError, match="already holds 'classifier.json', 'model.safetensors'.*overwrite=True"):
        sp.save_classifier(sky, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "text_tower.safetensors").write_bytes(b"of the earlier classifier")
    sp.save_classifier(sky, folder, overwrite=True)
    assert sp.load_classifier(folder).classes.ids == ("sun", "moon")
    assert not (folder / "text_tower.safetensors").exists()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"of another program")
    with pytest.raises(sp.InputError, match="already holds 'model.safetensors'"):
        sp.save_classifier(sky, tmp_path / "weights")
    with pytest.raises(sp.InputError, match="is the name of a file"):
        sp.save_classifier(sky, tmp_path / "model.pt")
