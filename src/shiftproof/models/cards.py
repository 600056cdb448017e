"""Model cards, which describe weights to a reader who did not make them."""

from __future__ import annotations

from shiftproof.records.merges import MergeRecord

_DESCRIPTIONS = {
    "linear": "(1 - alpha) of the first input plus alpha of the second, entry by entry",
    "uniform": "the mean of all inputs",
    "greedy": "the mean of the inputs that a greedy soup took by held-out accuracy",
    "model-stock": "the mean of the fine-tuned inputs, drawn to the first input by the angle between them",
}


def merge_card(record: MergeRecord) -> str:
    """Returns the README.md of merged weights: inputs, method, and what was done with each kind of entry."""
    lines = [
        "---",
        f"tags: [merge, {record.method}]",
        "---",
        "# Merged weights",
        "",
        f"{_DESCRIPTIONS[record.method][0].upper()}{_DESCRIPTIONS[record.method][1:]} ({record.paper}).",
        "",
        "| input | role | read as | fingerprint |",
        "|---|---|---|---|",
        *(
            f"| `{entry.path}` | {entry.role.replace('_', '-')} | {entry.kind} | `{entry.fingerprint}` |"
            for entry in record.inputs
        ),
        "",
        *_alpha_lines(record),
        *_entry_lines(record),
        "",
        f"Fingerprint of these weights: `{record.fingerprint}`. `merge.json` names every entry.",
    ]
    return "\n".join(lines) + "\n"


def _alpha_lines(record: MergeRecord) -> list[str]:
    if record.members:
        return [f"Members: {', '.join(f'`{record.inputs[i].path}`' for i in record.members)}.", ""]
    if record.alphas:
        low, high = min(record.alphas.values()), max(record.alphas.values())
        return [f"alpha: from {low:g} to {high:g}, by layer.", ""]
    return [] if record.alpha is None else [f"alpha: {record.alpha:g}.", ""]


def _entry_lines(record: MergeRecord) -> list[str]:
    lines = [f"- {len(record.interpolated)} entries combined in float32 (float64 for float64), rounded once"]
    lines.append(f"- {len(record.copied)} entries copied bit for bit")
    if record.missing:
        lines.append(f"- {len(record.missing)} entries that some input lacks, kept from the first that has them")
    if record.tied:
        lines.append(f"- {len(record.tied)} names tied to another's memory, with equal values")
    if record.untied:
        lines.append(
            f"- {len(record.untied)} names tied to another's memory in an input, but no longer in these weights: load "
            "them into a model that does not tie them"
        )
    if record.batch_norm:
        lines.append(
            f"- {len(record.batch_norm)} batch-norm statistics averaged: that is not what the merged network would "
            "measure; re-estimate them on training images"
        )
    return lines
