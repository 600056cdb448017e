"""The record of a merge of checkpoint files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MergeInput:
    """One input of a merge; ``fingerprint`` covers names, dtypes, shapes and bytes, but not their order or shards.

    It is None in a dry run, which does not read the input.
    """

    path: str
    role: str
    kind: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class MergeRecord:
    """What a merge of checkpoint files did, or in a dry run would do, for one output; ``merge.json`` is its JSON form.

    ``alpha`` is None if entries have individual alphas, which are in ``alphas``, or if the method has none. ``members``
    are the inputs that a greedy soup selected, ``scores`` the results of its trials. Every entry of the output is in
    one of ``interpolated`` (floating-point and combined), ``copied`` (from one input, bit for bit) and ``missing``
    (absent from some input; taken from the first that has it). ``tied`` maps names to those whose values they share in
    all inputs, and ``untied`` names that some input ties to those from which their merged values may differ;
    ``batch_norm`` are the averaged running statistics. ``files`` gives the size of every weights file in bytes.
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
    untied: Mapping[str, str] = field(default_factory=dict)
    batch_norm: tuple[str, ...] = ()
    members: tuple[int, ...] = ()
    scores: tuple[Mapping[str, Any], ...] = ()
    fingerprint: str | None = None

    @property
    def bytes(self) -> int:
        """The size of the weights in bytes."""
        return sum(self.files.values())
