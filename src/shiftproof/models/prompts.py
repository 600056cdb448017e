"""Prompts: the sentences about a class that the text tower reads, from templates or class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from shiftproof.data.labels import ClassSpace
from shiftproof.data.spelling import normal_name
from shiftproof.errors import InputError, listed, require_choice
from shiftproof.storage import expanded, read_json

# Templates for all classes, or the prompts of every class by its id or name.
Prompts: TypeAlias = tuple[str, ...] | Mapping[str, tuple[str, ...]]
PROMPT_SETS = ("photo", "short", "openai")
PROMPT_FILES = (".txt", ".json")
# The seven of the CLIP authors' notebook that do best together on ImageNet.
_SHORT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def prompt_templates(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a named set, or the given templates; each contains ``{}`` or ``{c}`` once.

    ``photo`` is "a photo of a {}.", ``short`` are seven that work well together, and ``openai`` are the 80 templates
    for ImageNet of the CLIP paper (Radford et al. 2021), as open_clip has them. Raises an InputError for an unknown
    set, for no template, and for a template without exactly one placeholder.

    >>> prompt_templates("photo")
    ('a photo of a {}.',)
    >>> prompt_templates(["a sketch of a {c}"])
    ('a sketch of a {}',)
    """
    if not isinstance(prompts, str):
        if not prompts:
            raise InputError("`prompts` is empty. Give at least one template, e.g. 'a photo of a {}.'.")
        return tuple(_checked(template) for template in prompts)
    if "{" in prompts:
        return (_checked(prompts),)
    require_choice("prompt set", prompts, PROMPT_SETS)
    if prompts == "photo":
        return ("a photo of a {}.",)
    if prompts == "short":
        return _SHORT
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def read_prompts(prompts: str | Sequence[str] | Mapping[str, Sequence[str]]) -> Prompts:
    """Templates (``prompt_templates``), or prompts by class, also from a file whose name is given.

    A .txt file has a template on each line. A .json file is a list of templates, or maps class ids or names to lists of
    prompts, as CuPL does (Pratt et al. 2023, arXiv 2209.03320). Raises an InputError for a file of another form.

    >>> read_prompts({"lemon": ["a lemon, which is sour", "a yellow {}"]})
    {'lemon': ('a lemon, which is sour', 'a yellow {}')}
    """
    if isinstance(prompts, Mapping):
        return _by_class(prompts, "`prompts`")
    if not isinstance(prompts, str) or not names_prompt_file(prompts):
        return prompt_templates(prompts)
    path = expanded(prompts)
    stored = _template_lines(path) if path.suffix == ".txt" else read_json(path)
    if isinstance(stored, dict):
        return _by_class(stored, str(path))
    if not isinstance(stored, list) or not stored or not all(isinstance(entry, str) for entry in stored):
        raise InputError(
            f"{path} has no templates. It must be a list of templates, one a line in a .txt file, or map classes to "
            "lists of prompts."
        )
    return prompt_templates(stored)


def names_prompt_file(prompts: str) -> bool:
    """Whether a text is the name of a file of prompts: it ends with .txt or .json and has no placeholder."""
    return prompts.endswith(PROMPT_FILES) and "{" not in prompts


def prompts_for(prompts: Prompts, classes: ClassSpace) -> Prompts:
    """The templates, or the prompts of each class by its id; raises an InputError for a class without prompts.

    Prompts are matched by the id of a class, or else by its name, apart from case.
    """
    if not isinstance(prompts, Mapping):
        return prompts
    known = {normal_name(name).casefold(): texts for name, texts in prompts.items()}
    chosen = {
        class_id: known.get(class_id.casefold()) or known.get(normal_name(name).casefold()) or ()
        for class_id, name in zip(classes.ids, classes.names, strict=True)
    }
    if lacking := [class_id for class_id, texts in chosen.items() if not texts]:
        raise InputError(
            f"there are no prompts for the classes {listed(lacking)}. Add them, under the id or the name of the class."
        )
    return chosen


def texts_of(prompts: Prompts, classes: ClassSpace) -> tuple[tuple[str, ...], ...]:
    """The prompts of every class, with its name in place of ``{}`` or ``{c}``, in the order of the classes.

    >>> texts_of(("a photo of a {}.",), ClassSpace.from_ids(["red_apple"]))
    (('a photo of a red apple.',),)
    """
    chosen = prompts_for(prompts, classes)
    by_class = chosen if isinstance(chosen, Mapping) else dict.fromkeys(classes.ids, chosen)
    return tuple(
        tuple(_filled(text, name) for text in by_class[class_id])
        for class_id, name in zip(classes.ids, classes.names, strict=True)
    )


def stored_prompts(stored: Any) -> Prompts:
    """The prompts in what a JSON file has for them.

    >>> stored_prompts(["a {}"]), stored_prompts({"lemon": ["a lemon"]})
    (('a {}',), {'lemon': ('a lemon',)})
    """
    return {name: tuple(texts) for name, texts in stored.items()} if isinstance(stored, dict) else tuple(stored)


def _filled(text: str, name: str) -> str:
    return name.join(text.replace("{c}", "{}").split("{}"))


def _template_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file of templates {path} cannot be read ({error}). Check the path.") from error


def _by_class(prompts: Mapping[Any, Any], what: str) -> dict[str, tuple[str, ...]]:
    by_class = {}
    for name, texts in prompts.items():
        listed_texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed_texts, list | tuple) or not all(isinstance(text, str) for text in listed_texts):
            raise InputError(
                f"the prompts of the class {name!r} in {what} are {texts!r}; they must be a list of texts."
            )
        by_class[str(name)] = tuple(listed_texts)
    return by_class


def _checked(template: str) -> str:
    plain = template.replace("{c}", "{}")
    if plain.count("{}") != 1 or set("{}") & set(plain.replace("{}", "")):
        raise InputError(
            f"the prompt template {template!r} must hold {{}} or {{c}} once, for the class name, and no other brace."
        )
    return plain
