"""An alpha for every layer: by name, or along the depth of a tower."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from shiftproof.errors import InputError, listed, require_between

# What a tower's numbered blocks are called, and what stands behind the last of them.
_BLOCK = re.compile(
    r"^((?:.*?\.)??)(?:resblocks|blocks|layers|layer|stages)((?:\.?\d+)(?:\.(?:(?:blocks|layers)\.)?\d+)*)(?=\.)"
)
_BEHIND = re.compile(
    r"(?<!patch_embed)(?<!stem)(?:^|\.)(?:norm|ln_post|ln_final|post_layernorm|final_layer_norm|fc_norm|attnpool|attn_pool|"
    r"head|classifier|fc|proj|visual_projection|text_projection|logit_scale|logit_bias)(?:\.|$)"
)


def alphas_by_pattern(names: Iterable[str], patterns: Mapping[str, float], default: float) -> dict[str, float]:
    """An alpha for every name: that of the first pattern that fits it, else ``default``.

    Patterns are shell-like (``visual.*``, ``*.bias``). One that fits no name is an InputError: it is misspelt.

    >>> alphas_by_pattern(["encoder.w", "head.w"], {"head.*": 1.0}, default=0.5)
    {'encoder.w': 0.5, 'head.w': 1.0}
    """
    names = list(names)
    for pattern, alpha in patterns.items():
        require_between(f"alpha of {pattern!r}", alpha, 0, 1)
        if not fnmatch.filter(names, pattern):
            raise InputError(f"no entry fits the pattern {pattern!r}. There are {listed(names, 5)}.")
    fitting = {
        name: next((alpha for pattern, alpha in patterns.items() if fnmatch.fnmatchcase(name, pattern)), default)
        for name in names
    }
    return fitting


def alphas_by_depth(names: Iterable[str], first: float, last: float) -> dict[str, float]:
    """An alpha for every name, rising or falling in a straight line over the depth of its tower.

    What stands before the numbered blocks of a tower (embeddings, stem) has ``first``, what stands behind them (the
    last norm, projection, head, logit scale) ``last``; block i of n has depth i / (n + 1). An InputError says so
    where no name holds a numbered block.

    >>> alphas_by_depth(["conv1.weight", "resblocks.0.w", "resblocks.1.w", "resblocks.2.w", "proj"], 0.0, 1.0)
    {'conv1.weight': 0.0, 'resblocks.0.w': 0.25, 'resblocks.1.w': 0.5, 'resblocks.2.w': 0.75, 'proj': 1.0}
    """
    require_between("the first alpha", first, 0, 1)
    require_between("the last alpha", last, 0, 1)
    block_of = {name: _block(name) for name in names}
    towers: dict[str, set[tuple[int, ...]]] = {}
    for found in block_of.values():
        if found:
            towers.setdefault(found[0], set()).add(found[1])
    if not towers:
        raise InputError(f"no entry stands in a numbered block, e.g. blocks.0: {listed(block_of, 5)}. Give one alpha.")
    order = {tower: sorted(blocks) for tower, blocks in towers.items()}
    alphas = {}
    for name, found in block_of.items():
        if found:
            tower, block = found
            depth = (order[tower].index(block) + 1) / (len(order[tower]) + 1)
        else:
            depth = 1.0 if _BEHIND.search(name) else 0.0
        alphas[name] = first + (last - first) * depth
    return alphas


def _block(name: str) -> tuple[str, tuple[int, ...]] | None:
    """The tower that a name's numbered block belongs to, and the block's numbers."""
    found = _BLOCK.match(name)
    return (found[1], tuple(int(number) for number in re.findall(r"\d+", found[2]))) if found else None
