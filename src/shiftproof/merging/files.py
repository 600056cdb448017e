"""Weight arithmetic on checkpoint files of any size: streamed piece by piece, and written completely or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shiftproof import progress
from shiftproof.ensembling.greedy import SoupTrial, greedy_members, members_of
from shiftproof.errors import IncompatibleWeightsError, InputError
from shiftproof.merging.adapters import read_adapter, scaled_adapters
from shiftproof.merging.alignment import Merge, aligned
from shiftproof.merging.layouts import copied_files, is_file
from shiftproof.merging.methods import METHODS, MergeSettings, Plan, members_coefficients, plans_of
from shiftproof.merging.outputs import (
    README,
    REPORT,
    errors_of_the_disk,
    existing_parent,
    places_of,
    publish,
    reports_of,
    require_free,
    require_space,
)
from shiftproof.merging.streams import PIECE, ContentFingerprint, Pen, fingerprint_tensors, pieces
from shiftproof.models.cards import merge_card
from shiftproof.records.codec import document
from shiftproof.records.merges import MergeInput, MergeRecord
from shiftproof.storage import move_into_place, staged, write_json, write_text
from shiftproof.weights.arithmetic import combine
from shiftproof.weights.checkpoints import (
    Checkpoint,
    SafetensorsWriter,
    open_checkpoint,
    size_of,
    write_index,
    write_state_dict,
)


def merge_files(
    *inputs: str | Path,
    out: str | Path,
    alpha: float | Sequence[float] = 0.5,
    settings: MergeSettings | None = None,
    score: Callable[[Path], float] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> tuple[MergeRecord, ...]:
    """Merges checkpoints on disk, by default (1 - alpha) of the first (zero-shot) and alpha of the second (fine-tuned).

    The default is Eq. 1 of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), with alphas from 0 to 1; ``settings``
    selects other methods and then replaces ``alpha``. Inputs are anything that ``open_checkpoint`` opens; the second
    may be a LoRA adapter of the first. ``out`` is a safetensors file, or a directory that the library of the first
    input loads: with its dtypes, metadata, configs and tokenizer, plus ``merge.json`` and a model card. Several alphas
    are written in one pass over the inputs, to ``out/alpha-0.30`` and so on. A greedy soup needs ``score``, which
    returns the held-out accuracy of a soup at a path; it must never read a shift.

    Memory use is bounded, whatever the size of the files. ``out`` appears completely or not at all, and an earlier
    output is replaced only with ``overwrite``. Returns one record for each output. With ``dry_run``, the records
    describe what would be written, and nothing is written except the trials of a greedy soup while they are scored.
    Raises an InputError or an IncompatibleWeightsError that names the file or the entry that cannot be used.

    >>> import tempfile, safetensors.torch
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, value in (("zeroshot", 0.0), ("finetuned", 1.0)):
    ...     safetensors.torch.save_file({"w": torch.full((3,), value)}, folder / f"{name}.safetensors")
    >>> ends = folder / "zeroshot.safetensors", folder / "finetuned.safetensors"
    >>> _ = merge_files(*ends, alpha=0.25, out=folder / "merged.safetensors")
    >>> safetensors.torch.load_file(folder / "merged.safetensors")["w"].tolist()
    [0.25, 0.25, 0.25]
    """
    settings = settings or MergeSettings(alphas=tuple(alpha) if isinstance(alpha, Sequence) else (float(alpha),))
    out = Path(out)
    checkpoints = [open_checkpoint(path) for path in inputs]
    require_free(out, checkpoints, overwrite=overwrite)
    if checkpoints and all(checkpoint.kind == "peft" for checkpoint in checkpoints):
        return _merge_adapters(checkpoints, settings, out, dry_run=dry_run)
    settings.require_inputs(len(checkpoints))
    merge = aligned(checkpoints, settings)
    with errors_of_the_disk(out):
        if settings.method == "greedy":
            merge = replace(merge, trials=_greedy(merge, score, out))
        plans = plans_of(settings, merge.inputs, merge.common, members_of(merge.trials))
        places = places_of(out, plans)
        records = [merge.record(plan, place) for plan, place in zip(plans, places, strict=True)]
        if dry_run:
            return tuple(records)
        require_space(out, sum(record.bytes for record in records))
        with staged(out) as made:
            targets = [made / out.name if is_file(out) else made / place.relative_to(out) for place in places]
            written = _write(merge, plans, records, targets)
            publish(made, out)
        return tuple(written)


def _greedy(merge: Merge, score: Callable[[Path], float] | None, out: Path) -> Sequence[SoupTrial]:
    """Selects members by Recipe 1 of "Model soups"; the soups are written next to ``out``, scored and deleted."""
    if score is None:
        raise InputError(
            "a greedy soup needs the held-out accuracy of its trials. Pass `score`, or name validation data."
        )

    def trial(members: tuple[int, ...]) -> float:
        plan = Plan(None, members_coefficients(merge.common, members, len(merge.inputs)))
        with staged(existing_parent(out) / f"{out.name}.trial") as made:
            place = made / out.name
            record = merge.record(plan, place)
            require_space(out, record.bytes)
            _write(merge, [plan], [record], [place])
            return score(place)

    return greedy_members([score(checkpoint.path) for checkpoint in merge.checkpoints], trial)


def _write(
    merge: Merge, plans: Sequence[Plan], records: Sequence[MergeRecord], places: Sequence[Path]
) -> list[MergeRecord]:
    """Writes the weights of every output in one pass over the inputs, and then the files next to them."""
    folders = [place.parent if is_file(place) else place for place in places]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    first, layout, entries = merge.checkpoints[0], merge.layout(places[0]), merge.entries
    read = [ContentFingerprint() for _ in merge.inputs]
    made = [ContentFingerprint() for _ in plans]
    done = 0
    for shard, names in layout.shards.items():
        of_shard = {name: entries[name] for name in names}
        with contextlib.ExitStack() as stack:
            metadata = {**first.metadata, "format": "pt"}
            writers = [stack.enter_context(SafetensorsWriter(folder / shard, of_shard, metadata)) for folder in folders]
            pen = stack.enter_context(Pen())
            for name in writers[0].order:
                _combine(merge, plans, name, writers, pen, (read, made))
                done += 1
                progress.report("merge", done, len(entries))
    inputs = [
        replace(entry, fingerprint=_fingerprint(checkpoint, content))
        for entry, checkpoint, content in zip(records[0].inputs, merge.checkpoints, read, strict=True)
    ]
    written = [
        replace(record, inputs=tuple(inputs), fingerprint=content.hexdigest(entries))
        for record, content in zip(records, made, strict=True)
    ]
    for plan, record, place in zip(plans, written, places, strict=True):
        if layout.index:
            write_index(place / layout.index, layout.shards, {**first.index, "total_size": records[0].bytes})
        _accompany(merge, plan, record, place)
    return written


def _combine(
    merge: Merge,
    plans: Sequence[Plan],
    name: str,
    writers: Sequence[SafetensorsWriter],
    pen: Pen,
    fingerprints: tuple[Sequence[ContentFingerprint], Sequence[ContentFingerprint]],
) -> None:
    """Combines one entry of every output, a piece at a time."""
    parts, (read, made) = merge.parts(name), fingerprints
    dtype = merge.entry(name).dtype
    readers = [read[merge.alone[name]]] if name in merge.alone else read
    shares = [merge.shares(plan, name) for plan in plans]
    for i in merge.passed_over(name):  # unused, but part of the fingerprint of that input
        for (piece,) in pieces([merge.inputs[i][name]], PIECE // dtype.itemsize):
            read[i].add(name, piece)
    for cut in pieces(parts, PIECE // dtype.itemsize):
        for reader, piece in zip(readers, cut, strict=True):
            reader.add(name, piece)
        if merge.settings.integers == "equal" and not (dtype.is_floating_point or dtype.is_complex):
            _require_equal(name, cut)
        for writer, share, content in zip(writers, shares, made, strict=True):
            mixed = combine(cut, share, out=pen.buffer(len(cut[0]), dtype))
            content.add(name, mixed)
            pen.write(writer, mixed)


def _accompany(merge: Merge, plan: Plan, record: MergeRecord, place: Path) -> None:
    """Writes the files next to the weights: configs, tokenizer, the classifier's card, the report and a model card."""
    if is_file(place):
        report, card = reports_of(place)
        write_json(report, document(record))
        write_text(card, merge_card(record))
        return
    for file in copied_files(merge.checkpoints[0]):
        shutil.copy2(file, place / file.name)
    if merge.cards:
        from shiftproof.models.directories import write_card  # imports timm and torchvision: seconds

        write_card(merge.card(plan, open_checkpoint(place / "model.safetensors").tensors), place)
    write_text(place / README, merge_card(record))
    write_json(place / REPORT, document(record))


def _fingerprint(checkpoint: Checkpoint, content: ContentFingerprint) -> str:
    # What was read of an adapter are the adapted weights, so its tensors, which are small, are fingerprinted here.
    adapter = checkpoint.kind == "peft"
    return fingerprint_tensors(checkpoint.tensors) if adapter else content.hexdigest(checkpoint.tensors)


def _require_equal(name: str, parts: Sequence[Tensor]) -> None:
    if not all(torch.equal(parts[0], part) for part in parts[1:]):
        raise IncompatibleWeightsError(
            f"the integers of {name!r} differ between the inputs. To copy those of the nearer input, "
            "give `integers='copy'`."
        )


def _merge_adapters(
    checkpoints: Sequence[Checkpoint], settings: MergeSettings, out: Path, *, dry_run: bool
) -> tuple[MergeRecord, ...]:
    """Scales one adapter by alpha, or interpolates two. Adapters are small, so this happens in memory."""
    if settings.method != "linear" or len(settings.alphas) > 1 or settings.layers or settings.depth or is_file(out):
        raise InputError(
            "adapters are merged with one alpha, into a directory. Merge them into their base for anything else."
        )
    if len(checkpoints) > 2:
        raise InputError(f"{len(checkpoints)} adapters are given. Name one to scale it, or two to interpolate them.")
    alpha = settings.alphas[0]
    shares = (alpha,) if len(checkpoints) == 1 else (1 - alpha, alpha)
    tensors, config = scaled_adapters([read_adapter(checkpoint) for checkpoint in checkpoints], shares)
    roles = ("fine_tuned",) if len(checkpoints) == 1 else ("zero_shot", "fine_tuned")
    record = MergeRecord(
        method="linear",
        paper=METHODS["linear"],
        out=str(out),
        inputs=tuple(
            MergeInput(str(checkpoint.path), role, "peft", fingerprint_tensors(checkpoint.tensors))
            for checkpoint, role in zip(checkpoints, roles, strict=True)
        ),
        alpha=alpha,
        interpolated=tuple(tensors),
        files={"adapter_model.safetensors": sum(map(size_of, tensors.values()))},
        copied_files=tuple(file.name for file in copied_files(checkpoints[0])),
        fingerprint=fingerprint_tensors(tensors),
    )
    if not dry_run:
        with errors_of_the_disk(out), staged(out) as made:
            for file in copied_files(checkpoints[0]):
                shutil.copy2(file, made / file.name)
            write_state_dict(tensors, made / "adapter_model.safetensors")
            write_json(made / "adapter_config.json", config)
            write_text(made / README, merge_card(record))
            write_json(made / REPORT, document(record))
            move_into_place(made, out)
    return (record,)
