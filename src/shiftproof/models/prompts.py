"""Prompt templates: what a class name is put into before the text tower reads it."""

from __future__ import annotations

from collections.abc import Sequence

from shiftproof.errors import InputError, require_choice

PROMPT_SETS = ("photo", "short", "openai")
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
    """The templates of a named set, or one's own; each holds ``{}`` or ``{c}`` once.

    ``photo`` is "a photo of a {}.", ``short`` are seven that work well together, ``openai`` the 80 of the
    CLIP paper for ImageNet (read from open_clip).

    >>> prompt_templates("photo")
    ('a photo of a {}.',)
    >>> prompt_templates(["a sketch of a {c}"])
    ('a sketch of a {}',)
    """
    if not isinstance(prompts, str):
        if not prompts:
            raise InputError("there is no prompt template. Give one, e.g. 'a photo of a {}.'.")
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


def _checked(template: str) -> str:
    plain = template.replace("{c}", "{}")
    if plain.count("{}") != 1 or set("{}") & set(plain.replace("{}", "")):
        raise InputError(
            f"the prompt template {template!r} must hold {{}} or {{c}} once, for the class name, and no other brace."
        )
    return plain
