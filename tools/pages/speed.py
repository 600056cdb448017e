"""The tables of benchmarks: a fine-tuning step, decoding, merging, memory, and each part against its floor."""

from __future__ import annotations

from typing import Any

from pages.markdown import markdown, out_of, require, span
from pages.sources import Sources

# The contenders of the benchmark of decoding, in the order of the page, and what they are called there.
_DECODING = {
    "ImageFolder, 0 workers": "`ImageFolder` and `DataLoader`, no worker process",
    "ImageFolder, 1 workers": "`ImageFolder` and `DataLoader`, one worker process",
    "ImageFolder, 2 workers": "`ImageFolder` and `DataLoader`, two worker processes",
    "shiftproof": "shiftproof, which decodes in threads",
    "worker processes": "shiftproof's pixels, decoded in two worker processes",
    "cache, cold": "shiftproof, filling its cache",
    "cache, warm": "shiftproof, from its cache",
    "jpeg_draft": "shiftproof with `jpeg_draft`",
    "floor of decoding": "Pillow alone, decoding and resizing in two threads",
    "floor of the cache": "torch alone, making floats of bytes in memory",
}
_SAME_FLOATS = 1e-5
_NO_FASTER = 0.9
_MERGE_HEADER = ("", "seconds, median", "peak anonymous memory, MB")


def step_tables(sources: Sources) -> str:
    """The time of a fine-tuning step, compared with the bare loop."""
    results = sources.benchmark("finetune")
    cpu = results["cpu"]
    summary = (
        f"On {results['machine']}, tiny model, batch 128: our step takes {cpu['ratio']:.2f} times the bare loop (the "
        f"target is at most 1.10), the median of {cpu['rounds']} alternating rounds. With other settings, against the "
        "same bare end-to-end loop, one round:"
    )
    rows = [(name, f"{ratio:.2f}") for name, ratio in cpu["other settings"].items()]
    parts = [summary, markdown(("setting", "times the bare loop"), rows)]
    if gpu := results["gpu"]:
        cards = [
            (name, f"{1 / e['ratio']:.1f}", f"{e['images_per_second']:,}", f"{100 * e['share_of_matrix_rate']:.0f} %")
            for name, e in gpu.items()
            if isinstance(e, dict)
        ]
        header = ("model", "times as fast as the bare float32 loop", "images per second", "of the GPU's matrix rate")
        parts += [f"On one {gpu['card']}:", markdown(header, cards)]
    return "\n\n".join(parts)


def model_tables(sources: Sources) -> str:
    """Training and prediction of several networks, compared with the best bare loop, idle and beside other work."""
    results = sources.benchmark("models")
    parts = [
        f"On {results['processor']}, {results['threads']} threads, batch {results['batch']}, medians of "
        f"{results['rounds']} rounds of {results['steps']} steps. `of the best` is our time over that of a bare "
        "PyTorch loop in whichever memory format is faster (the target is at most 1.10), `contiguous` is the bare "
        "loop's time in contiguous memory over that in channels-last, and `passive` is how many times as fast we are "
        "with `OMP_WAIT_POLICY=PASSIVE`, which our commands set, as without it."
    ]
    header = ("model", *(f"{task}: {what}" for task in ("train", "predict") for what in _MODEL_COLUMNS))
    for condition, models in results["tables"].items():
        rows = [
            (name, *(cell for task in ("train", "predict") for cell in _of_model(entry[task])))
            for name, entry in models.items()
        ]
        parts.append(f"{_CONDITIONS[condition]}:\n\n{markdown(header, rows)}")
    ratios = [
        entry[task]["of_best"] for models in results["tables"].values() for entry in models.values() for task in entry
    ]
    parts.append(
        f"The target is missed in {out_of(ratio > _TARGET for ratio in ratios)} cases. Ours includes what the bare "
        f"loop leaves out: random crops, clipping, and in training a checkpoint after the {results['steps']} steps of "
        "each round, which a real run writes once in hundreds of steps."
    )
    return "\n\n".join(parts)


_TARGET = 1.1
_CONDITIONS = {"0 busy processes": "On an idle machine", "2 busy processes": "Beside two busy processes"}
_MODEL_COLUMNS = ("images/s", "of the best", "contiguous", "passive")


def _of_model(entry: dict[str, Any]) -> tuple[str, ...]:
    ratios = (entry[name] for name in ("of_best", "contiguous_of_channels_last", "passive"))
    return (f"{entry['images_per_second']:,.0f}", *(f"{ratio:.2f}" for ratio in ratios))


def decoding_tables(sources: Sources) -> str:
    """The time of reading pictures, compared with torchvision, and how far the pixels of drafts are off."""
    results = sources.benchmark("decoding")
    sets = results["sets"]
    described = " and ".join(
        f"{name} ({entry['images']:,} pictures of {entry['mean kilobytes']:.0f} KB)" for name, entry in sets.items()
    )
    rounds = {entry["rounds"] for entry in sets.values()}
    summary = (
        f"A pass over {described}, resized to 224 px, in batches of {results['batch size']} ({results['machine']}, "
        f"median of {span(rounds, str)} alternating rounds, all files in the page cache). The ratios are to the "
        "fastest `DataLoader` of each set:"
    )
    rows = [
        (
            words,
            *(
                f"{entry['median seconds'][name]:.2f} s, {entry['of the best loader'][name]:.2f}"
                for entry in sets.values()
            ),
        )
        for name, words in _DECODING.items()
    ]
    targets = [
        (
            _DECODING[t["what"]],
            t["set"],
            f"at most {t['at most']:.2f}",
            f"{t['reached']:.2f}",
            "yes" if t["met"] else "no",
        )
        for t in results["targets"]
    ]
    drafts = span((entry["differences"]["mean, draft to whole"] for entry in sets.values()), "{:.1f}".format)
    equal = max(entry["differences"]["largest, to ImageFolder"] for entry in sets.values())
    require(equal < _SAME_FLOATS, "the inputs are those that torchvision makes")
    return "\n\n".join(
        [
            summary,
            markdown(("", *sets), rows),
            markdown(("", "pictures", "target", "measured", "met"), targets),
            "The inputs are those that torchvision makes, up to the rounding of floats. With `jpeg_draft`, the pixels "
            f"of a set differ by {drafts} of 255 levels on average.",
        ]
    )


def head_table(sources: Sources) -> str:
    """The time of a zero-shot head of 1,000 classes and 80 templates, by the way its prompts are batched."""
    results = sources.benchmark("zeroshot_head")
    machine = results["machine"]
    contenders = results["contenders"]
    rows = [
        (
            words,
            f"{contenders[name]['seconds_for_1000_classes'] / 60:.0f}",
            f"{contenders[name]['ratio_to_class_by_class']:.2f}",
        )
        for name, words in _HEADS.items()
    ]
    amx = "amx_bf16" in machine["bfloat16_instructions"]
    require(not amx, "the processor has no AMX")
    least = contenders["batches without padding, bfloat16"]["smallest_cosine_with_class_by_class"]
    return "\n\n".join(
        [
            f"The head of 1,000 classes with {results['templates']} templates each, text tower of ViT-B/32, "
            f"{machine['threads']} threads of an {machine['processor']} processor without AMX, extrapolated from "
            f"{results['classes']} classes, median of {results['rounds']} alternating rounds:",
            markdown(("", "minutes", "times class by class"), rows),
            "Nearly all is saved by leaving the padding out; large batches alone save nothing on a CPU. In bfloat16, "
            f"the smallest cosine between a row and the same row in float32 is {least:.5f}. shiftproof computes heads "
            "in float32, since a head is computed once and every result depends on it.",
        ]
    )


_HEADS = {
    "class by class": "class by class, as earlier versions did",
    "batches with padding": "in batches",
    "batches without padding": "in batches without padding, as shiftproof does",
    "batches without padding, bfloat16": "the same with matrix products in bfloat16",
}


def decoding_workers(sources: Sources) -> str:
    """Why threads decode, with the time that worker processes take."""
    ratios = {name: entry["of the best loader"] for name, entry in sources.benchmark("decoding")["sets"].items()}
    measured = " and ".join(f"{r['worker processes'] / r['shiftproof']:.2f} ({name})" for name, r in ratios.items())
    require(
        all(r["worker processes"] >= _NO_FASTER * r["shiftproof"] for r in ratios.values()),
        "worker processes are hardly faster than threads",
    )
    return (
        "- Threads decode images, and worker processes do not: Pillow releases the interpreter's lock, nothing has to "
        "be pickled, and random crops depend on the number of the batch alone. Two worker processes take "
        f"{measured} times as long as two threads for the same pixels (`benchmarks/bench_decoding.py`)."
    )


def throughput(sources: Sources) -> str:
    """The time of each part, compared with its floor."""
    results = sources.benchmark("throughput")
    return (
        f"`make bench` times each part against its floor in alternating rounds ({results['machine']}, float32). "
        f"`predict` takes {results['evaluate']['ratio']:.2f} times as long as the bare network on resident images, the "
        f"fine-tuning loop {results['fine_tune']['ratio']:.2f} times as long as a bare loop of forward, backward, and "
        f"AdamW, and `interpolate_weights` {results['interpolate']['ratio']:.2f} times as long as a bare `torch.lerp`."
    )


def merge_tables(sources: Sources) -> str:
    """Time and memory of merging files, compared with the floor, a plain script and mergekit."""
    results = sources.benchmark("merge")
    targets = [
        (t["size"], t["what"], _target(t), f"{t['reached']:g}", "yes" if t["met"] else "no") for t in results["targets"]
    ]
    least = [entry["ratios"]["merge less imports / floor"] for entry in results["sizes"].values()]
    require(max(least) < 1, "less imports, a merge is faster than the floor")
    summary = (
        f"Less imports, a merge takes {span(least, '{:.2f}'.format)} times as long as the floor, because the floor "
        "reads first and writes afterwards, whereas a merge does both at the same time."
    )
    parts = [summary, markdown(("checkpoints", "what", "target", "measured", "met"), targets)]
    for size, entry in results["sizes"].items():
        seconds, memory = entry["median_seconds"], entry["memory_mb"]["peak_anonymous"]
        rows = [
            (name, f"{took:.1f}", f"{memory[name]:.0f}" if name in memory and "imports" not in name else "")
            for name, took in seconds.items()
        ]
        parts.append(f"Two checkpoints of {size}, {entry['rounds']} rounds:\n\n{markdown(_MERGE_HEADER, rows)}")
    return "\n\n".join(parts)


def _target(entry: dict[str, Any]) -> str:
    return f"at most {entry['at_most']:g}" if "at_most" in entry else f"at least {entry['at_least']:g}"


def memory_table(sources: Sources) -> str:
    """The peak memory of the diagnoses of saved predictions."""
    results = sources.benchmark("diagnosis")
    rows = [
        (name, f"{entry['peak_mb']:.0f}", f"{entry['seconds']:.0f}")
        for name, entry in results.items()
        if isinstance(entry, dict)
    ]
    rises = {name.split(":")[0]: value for name, value in results.items() if "MB more at 1" in name}
    more = " and ".join(f"{value:.0f} MB ({activity})" for activity, value in rises.items())
    limit = results["target, MB more at most"]
    summary = f"With ten times as many images, the peak rises by {more}. The target is a rise of at most {limit} MB."
    return f"{markdown(('', 'peak memory, MB', 'seconds'), rows)}\n\n{summary}"
