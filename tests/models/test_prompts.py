"""Prompts from files and class by class, and warnings of prompts that are not what was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import shiftproof as sp
from shiftproof.models.prompts import prompts_for, read_prompts, texts_of

SPACE = sp.ClassSpace(("n1", "Pear"), ("Granny Smith", "pear"))
BY_CLASS = {"n1": ["a green apple", "a {} apple"], "pear": ["a pear"]}


def test_templates_come_from_lines_and_lists(tmp_path: Path) -> None:
    lines, listed = tmp_path / "mine.txt", tmp_path / "mine.json"
    lines.write_text("a photo of a {}.\n\n  one {c}  \n", encoding="utf-8")
    listed.write_text(json.dumps(["a photo of a {}.", "one {c}"]))
    assert read_prompts(str(lines)) == read_prompts(str(listed)) == ("a photo of a {}.", "one {}")


def test_prompts_by_class_are_matched_by_id_or_name(tmp_path: Path) -> None:
    file = tmp_path / "cupl.json"
    file.write_text(json.dumps({**BY_CLASS, "another class": ["not ours"]}))
    assert texts_of(read_prompts(str(file)), SPACE) == (("a green apple", "a Granny Smith apple"), ("a pear",))
    by_name = read_prompts({"granny smith": ["a green apple"], "PEAR": ["a pear"]})
    assert prompts_for(by_name, SPACE) == {"n1": ("a green apple",), "Pear": ("a pear",)}


def test_a_class_without_prompts_is_refused() -> None:
    with pytest.raises(sp.InputError, match="no prompts for the classes 'Pear'"):
        prompts_for(read_prompts({"n1": ["a green apple"], "pear": []}), SPACE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"lemon": 3}', "prompts of the class 'lemon'.*are 3"),
        ('{"lemon": ["a", 3]}', "must be a list of texts"),
        ("[]", "has no templates"),
        ("[3]", "has no templates"),
        ('"photo"', "has no templates"),
        ('["a photo"]', "must hold"),
        ("{", "not valid JSON"),
    ],
)
def test_files_that_hold_no_prompts_are_mistakes(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(sp.InputError, match=message):
        read_prompts(str(tmp_path / "mine.json"))


@pytest.mark.parametrize("name", ["none.txt", "none.json"])
def test_a_missing_file_of_prompts_is_a_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(sp.InputError, match=r"none.*Check the path"):
        read_prompts(str(tmp_path / name))


def test_a_head_by_class_is_the_mean_of_its_own_prompts(tiny: sp.models.Clip, tmp_path: Path) -> None:
    built = sp.zero_shot_classifier(tiny, SPACE, BY_CLASS)
    for row, texts in zip(
        built.network.head.weight, (["a green apple", "a Granny Smith apple"], ["a pear"]), strict=True
    ):
        with torch.inference_mode():
            embedded = torch.stack([vector / vector.norm() for vector in tiny.encode_text(texts)]).mean(0)
        torch.testing.assert_close(row.detach() / built.logit_scale, embedded / embedded.norm(), rtol=1e-4, atol=1e-5)
    read = sp.load_classifier(sp.save_classifier(built, tmp_path / "built"))
    assert read.prompts == built.prompts == {"n1": ("a green apple", "a {} apple"), "Pear": ("a pear",)}
    turned = sp.ClassSpace(SPACE.ids[::-1], SPACE.names[::-1])
    assert texts_of(built.in_order_of(turned).prompts, turned) == (
        ("a pear",),
        ("a green apple", "a Granny Smith apple"),
    )


@pytest.mark.parametrize(
    ("prompts", "names", "message"),
    [
        (["a {}", "a {}"], ("apple", "pear"), "2 of 2 classes have a prompt more than once.*'n1' has 'a apple'"),
        ({"n1": ["x", "x"], "Pear": ["y"]}, ("apple", "pear"), "1 of 2 classes have a prompt more than once"),
        ({"n1": ["x", " "], "Pear": ["y"]}, ("apple", "pear"), "have an empty name or prompt: 'n1'"),
        ("a {}", ("", "pear"), "have an empty name or prompt: 'n1'"),
        ({"n1": ["x"], "Pear": ["x"]}, ("apple", "pear"), "zero-shot rows of the classes 'n1' and 'Pear' are equal"),
        ({"n1": ["word " * 90], "Pear": ["x"]}, ("apple", "pear"), "longer prompts are truncated.*'apple'"),
    ],
)
def test_prompts_that_are_not_what_was_meant_are_warned_of(
    tiny: sp.models.Clip, prompts: Any, names: tuple[str, str], message: str
) -> None:
    with pytest.warns(UserWarning, match=message):
        sp.zero_shot_classifier(tiny, sp.ClassSpace(SPACE.ids, names), prompts)
