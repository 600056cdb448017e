"""An alpha for every layer, by name or by depth in a tower."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from shiftproof.errors import InputError, listed, require_between

# The names of numbered blocks in a tower, and of what follows the last of them.
_BLOCK = re.compile(
    r"^((?:.*?\.)??)(?:resblocks|blocks|layers|layer|stages)((?:\.?\d+)(?:\.(?:(?:blocks|layers)\.)?\d+)*)(?=\.)"
)
_BEHIND = re.compile(
    r"(?<!patch_embed)(?<!stem)(?:^|\.)(?:norm|ln_post|ln_final|post_layernorm|final_layer_norm|fc_norm|attnpool|attn_pool|"
    r"head|classifier|fc|proj|visual_projection|text_projection|logit_scale|logit_bias)(?:\.|$)"
)


def alphas_by_pattern(names: Iterable[str], patterns: Mapping[str, float], default: float) -> dict[str, float]:
    """Returns an alpha for every name: that of the first pattern that matches it, or ``default``.

    Patterns are those of a shell (``visual.*``, ``*.bias``). Raises an InputError for an alpha outside of 0 to 1, and
    for a pattern that matches no name, since it must be misspelt.

    >>> alphas_by_pattern(["encoder.w", "head.w"], {"head.*": 1.0}, default=0.5)
    {'encoder.w': 0.5, 'head.w': 1.0}
    """
    names = list(names)
    for pattern, alpha in patterns.items():
        require_between(f"alpha of {pattern!r}", alpha, 0, 1)
        if not fnmatch.filter(names, pattern):
            raise InputError(f"no entry matches the pattern {pattern!r}. There are {listed(names, 5)}.")
    return {
        name: next((alpha for pattern, alpha in patterns.items() if fnmatch.fnmatchcase(name, pattern)), default)
        for name in names
    }


def alphas_by_depth(names: Iterable[str], first: float, last: float) -> dict[str, float]:
    """Returns an alpha for every name that changes linearly with depth, from ``first`` to ``last``.

    Entries before the numbered blocks of a tower (embeddings, stem) get ``first``, and entries after them (the last
    norm, projection, head, logit scale) get ``last``. Block i of n, counted from 1, has the depth i / (n + 1). Raises
    an InputError for an alpha outside of 0 to 1, and if no name contains a numbered block.

    >>> alphas_by_depth(["conv1.weight", "resblocks.0.w", "resblocks.1.w", "resblocks.2.w", "proj"], 0.0, 1.0)
    {'conv1.weight': 0.0, 'resblocks.0.w': 0.25, 'resblocks.1.w': 0.5, 'resblocks.2.w': 0.75, 'proj': 1.0}
    """
    require_between("the first alpha", first, 0, 1)
    require_between("the last alpha", last, 0, 1)
    block_of = {name: _block(name) for name in names}
    towers: dict[str, set[tuple[int, ...]]] = {}
    for tower, block in filter(None, block_of.values()):
        towers.setdefault(tower, set()).add(block)
    if not towers:
        raise InputError(
            f"no entry belongs to a numbered block, such as blocks.0: {listed(block_of, 5)}. Use one alpha."
        )
    order = {tower: sorted(blocks) for tower, blocks in towers.items()}
    alphas = {}
    for name, place in block_of.items():
        if place:
            tower, block = place
            depth = (order[tower].index(block) + 1) / (len(order[tower]) + 1)
        else:
            depth = 1.0 if _BEHIND.search(name) else 0.0
        alphas[name] = first + (last - first) * depth
    return alphas


def _block(name: str) -> tuple[str, tuple[int, ...]] | None:
    """Returns the tower of the numbered block in a name and the numbers of the block, or None without a block."""
    match = _BLOCK.match(name)
    return (match[1], tuple(int(number) for number in re.findall(r"\d+", match[2]))) if match else None
