"""What a merge of checkpoint files did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MergeInput:
    """One input of a merge; ``fingerprint`` covers names, dtypes, shapes and bytes, whatever the order and shards.

    It is None before the input was read, in a dry run.
    """

    path: str
    role: str
    kind: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class MergeRecord:
    """What a merge of checkpoint files did, or in a dry run would do, for one output; ``merge.json`` is its JSON form.

    ``alpha`` is None where entries have alphas of their own (then in ``alphas``) or the method knows none; ``members``
    are the inputs that a greedy soup took, ``scores`` what its trials came to. Every entry of the output stands in one
    of ``interpolated`` (floating point, combined), ``copied`` (from one input, bit for bit) and ``missing`` (some
    input lacks it; taken from the first that has it). ``tied`` maps names to those whose memory they share in all
    inputs; ``batch_norm`` are the averaged running statistics. ``files`` gives the bytes of every weights file.
    """

    method: str
    paper: str
    out: str
    inputs: tuple[MergeInput, ...]
    alpha: float | None
    interpolated: tuple[str, ...]
    files: Mapping[str, int]
    copied_files: tuple[str, ...]
    alphas: Mapping[str, float] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    batch_norm: tuple[str, ...] = ()
    members: tuple[int, ...] = ()
    scores: tuple[Mapping[str, Any], ...] = ()
    fingerprint: str | None = None

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return sum(self.files.values())
