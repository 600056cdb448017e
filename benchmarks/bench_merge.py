"""Measures time and memory of `shiftproof merge` on sharded checkpoints, as ratios within one run.

    python benchmarks/bench_merge.py --mergekit VENV --out benchmarks/results/merge.json

It takes about 30 minutes on two cores and 14 GB of disk under `--work`. It creates two bfloat16 checkpoints from a
seed, with the names and shapes of a Llama, in about five shards, first of 1 GB and then of 4 GB each. Each round runs
every contender once in a separate process, in an order that rotates from round to round. The results are the medians
of the rounds' ratios. Between two runs, which is not timed, outputs are deleted, dirty pages are synced, and both
inputs are read into the page cache.

- floor: `cat` of all shards of both inputs to /dev/null, then `dd bs=8M conv=fsync` of the shards of the first.
- merge: `shiftproof merge A B --alpha 0.5`, including the start of Python and its imports.
- imports: an interpreter that imports the modules which a merge loads, and exits.
- plain: a script that loads all shards with safetensors, interpolates in float32, and saves and syncs each shard.
- mergekit: `mergekit-yaml` with method `linear`, from a separate virtual environment, which is created if necessary. It
  syncs nothing, unlike all the others; "mergekit, synced" adds the seconds in which its output reaches the disk.
- mergekit imports: an interpreter that imports what `mergekit-yaml` imports, and exits.

Memory is the peak of the total RssAnon of a contender's processes, polled during the warm-up rounds, which are not
timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shiftproof.storage import write_json

GB, MB = 10**9, 10**6
SHARDS = 5
DEVIATION = 0.02
WARM_UPS = 2
POLL_SECONDS = 0.005
MERGEKIT = ("mergekit==0.1.5", "torch==2.13.0")
# By maximum size in GB: hidden, intermediate and vocabulary size, and number of heads for keys and values.
SHAPES = {
    0.01: (64, 176, 1000, 1),
    0.5: (1024, 2816, 32000, 2),
    2.0: (2048, 5632, 32000, 4),
    1e9: (4096, 14336, 32000, 8),
}
TIME_TARGETS = (
    ("merge / floor", "at_most", 1.5),
    ("merge less imports / floor", "at_most", 1.5),
    ("mergekit / merge", "at_least", 2.5),
)
MEMORY_TARGET, MEMORY_NOISE = 600, 1.05

LIST_MODULES = """
import json, sys
from shiftproof.cli.app import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
with open("modules.json", "w") as file:
    json.dump([name for name, module in sys.modules.items() if getattr(module, "__spec__", None)], file)
sys.exit(code)
"""
IMPORT_MODULES = """
import contextlib, importlib, json
with open("modules.json") as file:
    names = json.load(file)
for name in names:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
with open("/proc/self/status") as file:
    anonymous = [line.split()[1] for line in file if line.startswith("RssAnon")]
with open("anonymous.txt", "w") as file:
    file.write(anonymous[0])
"""
PLAIN = """
import json, os, sys
from pathlib import Path
from typing import Any
import torch
from safetensors.torch import load_file, save_file
a, b, c = map(Path, sys.argv[1:])
shards = {path.name: load_file(path) for path in sorted(a.glob("*.safetensors"))}
others = {}
for path in sorted(b.glob("*.safetensors")):
    others |= load_file(path)
c.mkdir()
for name, tensors in shards.items():
    mixed = {key: torch.lerp(x.float(), others[key].float(), 0.5).to(x.dtype) for key, x in tensors.items()}
    save_file(mixed, c / name, metadata={"format": "pt"})
    with open(c / name, "rb") as file:
        os.fsync(file.fileno())
for name in ("config.json", "model.safetensors.index.json"):
    (c / name).write_bytes((a / name).read_bytes())
"""
RECIPE = """merge_method: linear
dtype: bfloat16
models:
  - {{model: {a}, parameters: {{weight: 0.5}}}}
  - {{model: {b}, parameters: {{weight: 0.5}}}}
"""
Commands = Mapping[str, list[list[str]]]


@dataclass(frozen=True)
class Place:
    """The folder of the checkpoints of one size, in which the commands run."""

    folder: Path

    @property
    def inputs(self) -> tuple[Path, Path]:
        return self.folder / "a", self.folder / "b"

    @property
    def out(self) -> Path:
        return self.folder / "c"


def shapes_of(size: float) -> tuple[dict[str, object], dict[str, tuple[int, ...]]]:
    """The config and the shapes of the tensors of a Llama of about ``size`` GB."""
    hidden, inner, vocabulary, key_heads = next(shape for most, shape in SHAPES.items() if size <= most)
    width = 128 if hidden > 2048 else 64
    keys = key_heads * width
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    ends, each = 2 * vocabulary * hidden + hidden, sum(torch.Size(shape).numel() for shape in layer.values())
    layers = max(1, round((size * GB / 2 - ends) / each))
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // width,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return config, shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make_checkpoint(folder: Path, size: float, seed: int) -> None:
    """Writes a sharded checkpoint of normal values with its index last, unless the folder already has an index."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config, shapes = shapes_of(size)
    sizes = {name: 2 * torch.Size(shape).numel() for name, shape in shapes.items()}
    total, shards, filled = sum(sizes.values()), [list[str]()], 0
    for name, nbytes in sizes.items():
        if shards[-1] and filled + nbytes / 2 > len(shards) * total / SHARDS:
            shards.append([])
        shards[-1].append(name)
        filled += nbytes
    random, weight_map = torch.Generator().manual_seed(seed), dict[str, str]()
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: torch.empty(shapes[name], dtype=torch.bfloat16).normal_(
                1.0 if "norm" in name else 0.0, DEVIATION, generator=random
            )
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / "config.json", config)
    write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})


def shards_of(folder: Path) -> list[Path]:
    """The weight files in a folder."""
    return sorted(folder.glob("*.safetensors"))


def shiftproof_merge(place: Place) -> list[str]:
    """The arguments of the measured command."""
    a, b = map(str, place.inputs)
    return ["merge", a, b, "--alpha", "0.5", "--out", str(place.out)]


def commands_of(place: Place, mergekit: Path | None) -> Commands:
    """The commands of every contender by its name, which run one after the other."""
    (a, b), c, python = place.inputs, place.out, sys.executable
    read = ["cat", *map(str, shards_of(a) + shards_of(b))]
    copies = [["dd", f"if={s}", f"of={c / s.name}", "bs=8M", "conv=fsync", "status=none"] for s in shards_of(a)]
    commands = {
        "floor": [read, ["mkdir", str(c)], *copies],
        "imports": [[python, "-c", IMPORT_MODULES]],
        "merge": [[str(Path(python).with_name("shiftproof")), *shiftproof_merge(place)]],
        "plain": [[python, "-c", PLAIN, str(a), str(b), str(c)]],
    }
    if mergekit is None:
        return commands
    recipe = place.folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(a=json.dumps(str(a)), b=json.dumps(str(b))), encoding="utf-8")
    most = max(shard.stat().st_size for shard in shards_of(a))
    options = ["--no-copy-tokenizer", "--quiet", "--out-shard-size", str(most)]
    return commands | {
        "mergekit": [
            [str(mergekit / "bin/mergekit-yaml"), str(recipe), str(c), *options],
            ["sh", "-c", 'sync "$0"/*', str(c)],
        ],
        "mergekit imports": [[str(mergekit / "bin/python"), "-c", "import mergekit.scripts.run_yaml"]],
    }


def anonymous_bytes(pid: int) -> int:
    """RssAnon in bytes of a process and all its descendants."""
    total = 0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                total += 1024 * int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(map(anonymous_bytes, map(int, (task / "children").read_text().split())))
    return total


def run(command: list[str], folder: Path, polled: bool) -> tuple[float, int]:
    """Runs a process that must succeed; returns wall-clock seconds and, if polled, the peak of its RssAnon in bytes."""
    log, peak = folder / "log.txt", 0
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        output = subprocess.DEVNULL if command[0] == "cat" else file
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=file)
        while polled and process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        code = process.wait()
        seconds = time.perf_counter() - started
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{shlex.join(command)[:500]} ended with exit code {code}:\n{tail}")
    return seconds, peak


def prepare(place: Place) -> None:
    """Deletes the output, syncs the disk, and reads both inputs into the page cache."""
    shutil.rmtree(place.out, ignore_errors=True)
    os.sync()
    time.sleep(1)
    for folder in place.inputs:
        subprocess.run(["cat", *shards_of(folder)], check=True, stdout=subprocess.DEVNULL)


def largest_difference(place: Place) -> float:
    """The largest difference between the output and the mean of the inputs, over every 97th number of each tensor."""
    (a, b), c, worst = place.inputs, place.out, 0.0
    first, second, mixed = (dict(sampled(folder)) for folder in (a, b, c))
    if mixed.keys() != first.keys():
        raise SystemExit(f"the names of the merged weights differ: {sorted(mixed.keys() ^ first.keys())[:5]}")
    for name, tensor in mixed.items():
        if tensor.dtype != torch.bfloat16:
            raise SystemExit(f"{name} was written as {tensor.dtype}")
        wanted = torch.lerp(first[name].float(), second[name].float(), 0.5).bfloat16()
        worst = max(worst, float((tensor.float() - wanted.float()).abs().max()))
    if worst > DEVIATION / 2:
        raise SystemExit(f"the merged weights are wrong by up to {worst}")
    return worst


def sampled(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every 97th number of each tensor in a folder."""
    for shard in shards_of(folder):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name).flatten()[::97].clone()


def measure(place: Place, commands: Commands, rounds: int) -> tuple[dict[str, list[list[float]]], dict[str, object]]:
    """Seconds of each contender's processes by round, and memory and differences from the warm-up rounds."""
    names, seconds = list(commands), {name: list[list[float]]() for name in commands}
    peaks, differences = dict.fromkeys(names, 0), dict[str, float]()
    for number in range(-WARM_UPS, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            prepare(place)
            outcomes = [run(command, place.folder, polled=number < 0) for command in commands[name]]
            print(f"round {number} {name}: {sum(took for took, _ in outcomes):.2f} s", file=sys.stderr, flush=True)
            if number >= 0:
                seconds[name].append([took for took, _ in outcomes])
                continue
            peaks[name] = max(peaks[name], *(peak for _, peak in outcomes))
            if number == -1 and name != "floor" and place.out.exists():
                differences[name] = largest_difference(place)
    prepare(place)
    resting = 1024 * int((place.folder / "anonymous.txt").read_text())
    memory = {name: round(peak / MB, 1) for name, peak in peaks.items()}
    merge = round((peaks["merge"] - resting) / MB, 1)
    used = {"imports_at_rest": round(resting / MB, 1), "merge_above_imports": merge, "peak_anonymous": memory}
    return seconds, {"memory_mb": used, "largest_difference": differences}


def ratios_of(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Medians of the rounds' ratios."""
    names = [name for name in seconds if "imports" not in name]
    pairs = {f"{name} / floor": (seconds[name], seconds["floor"]) for name in names[1:]}
    pairs |= {f"{name} / merge": (seconds[name], seconds["merge"]) for name in names if name not in ("floor", "merge")}
    less = {
        name: [whole - start for whole, start in zip(seconds[name], seconds[imports], strict=True)]
        for name, imports in (("merge", "imports"), ("mergekit", "mergekit imports"))
        if name in names
    }
    pairs |= {f"{name} less imports / floor": (times, seconds["floor"]) for name, times in less.items()}
    if "mergekit" in less:
        pairs["mergekit / merge, both less imports"] = less["mergekit"], less["merge"]
    return {
        name: round(statistics.median(a / b for a, b in zip(*pair, strict=True)), 3) for name, pair in pairs.items()
    }


def bench(work: Path, size: float, rounds: int, mergekit: Path | None, modules: Path) -> dict[str, object]:
    """Measures all contenders on checkpoints of one size."""
    place = Place(work / f"{size:g}gb")
    for seed, folder in enumerate(place.inputs):
        make_checkpoint(folder, size, seed)
    shutil.copy(modules, place.folder)
    raw, shown = measure(place, commands_of(place, mergekit), rounds)
    weights = [shard.stat().st_size for shard in shards_of(place.inputs[0])]
    seconds = {name: [sum(parts) for parts in found] for name, found in raw.items()}
    if mergekit is not None:
        seconds["mergekit, synced"], seconds["mergekit"] = seconds["mergekit"], [parts[0] for parts in raw["mergekit"]]
    reads, writes = [parts[0] for parts in raw["floor"]], [sum(parts[1:]) for parts in raw["floor"]]
    return {
        "rounds": rounds,
        "warm_ups": WARM_UPS,
        "shard_mb": [round(found / MB) for found in weights],
        "tensors": len(shapes_of(size)[1]),
        "cache_read_mb_per_s": round(2 * sum(weights) / MB / statistics.median(reads)),
        "disk_write_mb_per_s": round(sum(weights) / MB / statistics.median(writes)),
        "seconds": {name: [round(one, 3) for one in found] for name, found in seconds.items()},
        "median_seconds": {name: round(statistics.median(found), 3) for name, found in seconds.items()},
        "ratios": ratios_of(seconds),
        **shown,
    }


def list_modules(work: Path) -> Path:
    """Writes the list of modules that a merge of two checkpoints of half a megabyte loads."""
    place = Place(work / "tiny")
    for seed, folder in enumerate(place.inputs):
        make_checkpoint(folder, 0.0005, seed)
    shutil.rmtree(place.out, ignore_errors=True)
    run([sys.executable, "-c", LIST_MODULES, *shiftproof_merge(place)], place.folder, polled=False)
    return place.folder / "modules.json"


def make_mergekit(folder: Path) -> Path:
    """The virtual environment of mergekit, which is created if it does not exist."""
    if not (folder / "bin/mergekit-yaml").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *reversed(MERGEKIT)], check=True)
    return folder


def versions(mergekit: Path | None) -> dict[str, object]:
    """The versions of the packages, here and in mergekit's environment."""
    installed: dict[str, object] = {"python": platform.python_version()}
    installed |= {name: version(name) for name in ("shiftproof", "torch", "safetensors", "numpy")}
    if mergekit is not None:
        names = ("mergekit", "torch", "safetensors", "transformers", "numpy")
        code = f"from importlib.metadata import version; print(*map(version, {names}))"
        output = subprocess.run([str(mergekit / "bin/python"), "-c", code], check=True, capture_output=True, text=True)
        installed["mergekit_environment"] = dict(zip(names, output.stdout.split(), strict=True))
    return installed


def machine(work: Path) -> dict[str, object]:
    """The processor, its cores, the memory and the type of the file system."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / GB, 1),
        "file_system": file_system(work),
    }


def file_system(folder: Path) -> str:
    """The type of the file system of a folder."""
    command = ["stat", "-f", "-c", "%T", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def targets_of(sizes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """The targets for each size, and whether they were met."""
    targets: list[dict[str, object]] = []
    memories: list[float] = []
    for size, result in sizes.items():
        ratios, memory = result["ratios"], result["memory_mb"]
        for name, kind, limit in TIME_TARGETS:
            if name in ratios:
                met = ratios[name] <= limit if kind == "at_most" else ratios[name] >= limit
                targets.append({"size": size, "what": name, kind: limit, "reached": ratios[name], "met": met})
        above = memory["merge_above_imports"]
        # A larger merge must not take more memory than a smaller one, apart from 5 % of noise.
        most = min([MEMORY_TARGET, *(round(MEMORY_NOISE * other, 1) for other in memories[:1])])
        memories.append(above)
        what = "MB of RssAnon above imports"
        targets.append({"size": size, "what": what, "at_most": most, "reached": above, "met": above <= most})
    return targets


def main() -> None:
    """Measures every size and writes the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/merge.json"))
    parser.add_argument("--sizes", default="1,4", help="GB of each checkpoint, comma-separated")
    parser.add_argument("--rounds", type=int, help="number of timed rounds; by default 5 up to 2 GB and 3 above")
    parser.add_argument(
        "--work", type=Path, help="folder for the checkpoints, which stay there; by default a temporary one in build/"
    )
    parser.add_argument(
        "--mergekit", type=Path, help="mergekit's virtual environment; without it, mergekit is not measured"
    )
    options = parser.parse_args()
    folder = options.work or Path("build")
    folder.mkdir(parents=True, exist_ok=True)
    work = (options.work or Path(tempfile.mkdtemp(prefix="bench-merge-", dir=folder))).resolve()
    if file_system(work) in ("tmpfs", "ramfs"):
        raise SystemExit(f"{work} is in memory; choose a folder on a disk with --work")
    mergekit = options.mergekit and make_mergekit(options.mergekit.absolute())
    try:
        modules, sizes = list_modules(work), {}
        for size in map(float, options.sizes.split(",")):
            rounds = options.rounds or (5 if size <= 2 else 3)
            sizes[f"{size:g} GB"] = bench(work, size, rounds, mergekit, modules)
        given = [f"--sizes {options.sizes}", *([f"--rounds {options.rounds}"] if options.rounds else [])]
        result = {
            "command": " ".join(
                ["python benchmarks/bench_merge.py", *given, *(["--mergekit VENV"] if mergekit else [])]
            ),
            "machine": machine(work),
            "versions": versions(mergekit),
            "targets": targets_of(sizes),
            "sizes": sizes,
        }
    finally:
        if options.work is None:
            shutil.rmtree(work)
    write_json(options.out, result)
    for target in result["targets"]:
        print(json.dumps(target))


if __name__ == "__main__":
    main()
