"""Prompt templates: the sentences that a class name is put into for the text tower."""

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


def _checked(template: str) -> str:
    plain = template.replace("{c}", "{}")
    if plain.count("{}") != 1 or set("{}") & set(plain.replace("{}", "")):
        raise InputError(
            f"the prompt template {template!r} must hold {{}} or {{c}} once, for the class name, and no other brace."
        )
    return plain
