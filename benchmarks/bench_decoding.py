"""Compares how fast pictures become batches of floats: shiftproof, with and without its cache, and torchvision.

    python benchmarks/bench_decoding.py --pacs PACS --pictures FOLDER --out benchmarks/results/decoding.json

Two sets are read: PACS, and 2,000 JPEGs of 500 x 500 px, which are cut from the pictures in FOLDER, enlarged and
grained with a fixed seed. Each round runs every contender once over a whole set, in an order that rotates
from round to round, and the results are medians of the rounds' ratios. All files and caches are in the page cache, and
what a contender wrote is synced before the next one starts.

- ImageFolder, N workers: torchvision's `ImageFolder` with the equivalent transform, and a `DataLoader` whose workers
  persist. The ratios are to the fastest N.
- shiftproof: `evaluation_batches`, which decodes in threads.
- worker processes: the same pixels from the persistent workers of a `DataLoader`, and floats made of them here.
- cache, cold; cache, warm: `evaluation_batches` with an empty and with a filled cache.
- jpeg_draft: `evaluation_batches` with JPEGs decoded at a fraction of their size.
- floor of decoding: Pillow decodes and resizes in two threads, and nothing else happens.
- floor of the cache: floats are made of bytes that are in memory already.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands of shiftproof do

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from shiftproof.data.batches import evaluation_batches, read_resized
from shiftproof.data.loading import Preprocessing, model_inputs, scaled_size
from shiftproof.data.reading import ReadSettings
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import load_data
from shiftproof.storage import write_json

BATCH = 64
PREPROCESSING = Preprocessing(size=224)
WORKERS = (0, 1, 2)
THREADS = 2
COMPARED = 100  # pictures whose pixels are compared
TARGETS = (("shiftproof", 1.0), ("cache, warm", 0.25))


@dataclass
class Contender:
    """A pass over a set, and what happens before it, which is not timed."""

    run: Callable[[], object]
    prepare: Callable[[], None] = lambda: None


class Resized(Dataset[np.ndarray]):
    """The resized uint8 pixels of a set, for worker processes."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> np.ndarray:
        return read_resized(self.images, i, PREPROCESSING)


def stacked(pixels: Sequence[np.ndarray]) -> torch.Tensor:
    """A batch of bytes, which is what workers send."""
    return torch.from_numpy(np.stack(pixels))


def loader(dataset: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
    """A loader of batches in order."""
    return DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0, **options)


def image_folder(folder: Path) -> torchvision.datasets.ImageFolder:
    """The folder as torchvision reads it, with the transform that `Preprocessing` describes."""
    transform = transforms.Compose(
        [
            transforms.Resize(PREPROCESSING.size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(PREPROCESSING.size),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
    return torchvision.datasets.ImageFolder(str(folder), transform)


def exhaust(batches: Iterator[torch.Tensor]) -> int:
    """Takes all batches and drops them."""
    return sum(len(batch) for batch in batches)


def decode_only(files: Sequence[Path]) -> None:
    """Decodes and resizes files in threads, and keeps nothing."""

    def decode(some: Sequence[Path]) -> None:
        for file in some:
            with Image.open(file) as image:
                rgb = image.convert("RGB")
            height, width = scaled_size(rgb.height, rgb.width, PREPROCESSING)
            rgb.resize((width, height), Image.Resampling.BICUBIC)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(decode, [files[i : i + BATCH] for i in range(0, len(files), BATCH)]))


def contenders(folder: Path, images: ImageSet, work: Path) -> dict[str, Contender]:
    """Every contender on a set by name; the loaders come first, since their workers are forked."""
    theirs = image_folder(folder)
    loaders = {f"ImageFolder, {n} workers": loader(theirs, n) for n in WORKERS}
    timed = {
        name: Contender(lambda batches=batches: exhaust(x for x, _ in batches))  # type: ignore[misc]
        for name, batches in loaders.items()
    }
    processes = loader(Resized(images), THREADS, collate_fn=stacked)
    timed["worker processes"] = Contender(
        lambda: exhaust(model_inputs(pixels.numpy(), PREPROCESSING) for pixels in processes)
    )
    cold, warm = work / "cold", work / "warm"

    def pass_over(**settings: Any) -> int:
        return exhaust(evaluation_batches(images.read_with(ReadSettings(**settings)), PREPROCESSING, BATCH))

    # A set that has opened its cache keeps it open, so the cold one is loaded anew.
    def fill() -> int:
        fresh = load_data(images.name).read_with(ReadSettings(cache=cold))
        return exhaust(evaluation_batches(fresh, PREPROCESSING, BATCH))

    timed["shiftproof"] = Contender(pass_over)
    timed["cache, cold"] = Contender(fill, lambda: shutil.rmtree(cold, ignore_errors=True))
    timed["cache, warm"] = Contender(lambda: pass_over(cache=warm))
    timed["jpeg_draft"] = Contender(lambda: pass_over(jpeg_draft=True))
    files = [file for file in images.files or () if isinstance(file, Path)]
    timed["floor of decoding"] = Contender(lambda: decode_only(files))
    resident = np.stack([read_resized(images, i, PREPROCESSING) for i in range(min(BATCH, len(images)))])
    sizes = [min(BATCH, len(images) - start) for start in range(0, len(images), BATCH)]
    timed["floor of the cache"] = Contender(
        lambda: exhaust(model_inputs(resident[:size], PREPROCESSING) for size in sizes)
    )
    return timed


def measure(timed: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender round by round, after a round of warm-up."""
    names, seconds = list(timed), {name: list[float]() for name in timed}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            timed[name].prepare()
            os.sync()
            started = time.perf_counter()
            timed[name].run()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def differences(folder: Path, images: ImageSet) -> dict[str, float]:
    """How far our inputs are from torchvision's, and how far drafts are from whole pictures, in levels of 255."""
    some = images.subset(range(0, len(images), max(len(images) // COMPARED, 1)))
    theirs = image_folder(folder)
    places = {path: i for i, (path, _) in enumerate(theirs.samples)}
    ours = torch.cat(list(evaluation_batches(some, PREPROCESSING, BATCH)))
    other = torch.stack([theirs[places[str(file)]][0] for file in some.files or ()])
    drafted = some.read_with(ReadSettings(jpeg_draft=True))
    levels = [
        np.abs(read_resized(some, i, PREPROCESSING).astype(int) - read_resized(drafted, i, PREPROCESSING)).mean()
        for i in range(len(some))
    ]
    return {
        "largest, to ImageFolder": round(float((ours - other).abs().max()), 6),
        "mean, draft to whole": round(float(np.mean(levels)), 2),
    }


def bench_set(folder: Path, work: Path, rounds: int) -> dict[str, Any]:
    """The results of one set."""
    images = load_data(f"folder:{folder}")
    seconds = measure(contenders(folder, images, work), rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min((name for name in medians if name.startswith("ImageFolder")), key=medians.__getitem__)
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(times, seconds[best], strict=True)), 3)
        for name, times in seconds.items()
    }
    files = [file for file in images.files or () if isinstance(file, Path)]
    return {
        "images": len(images),
        "mean kilobytes": round(statistics.mean(file.stat().st_size for file in files) / 1e3, 1),
        "rounds": rounds,
        "best loader": best,
        "median seconds": {name: round(value, 3) for name, value in medians.items()},
        "of the best loader": ratios,
        "differences": differences(folder, images),
    }


def make_jpegs(pictures: Path, out: Path, count: int) -> None:
    """Writes JPEGs of 500 x 500 px in ten class folders: square cuts of pictures, enlarged and grained."""
    sources = sorted(file for file in pictures.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png"})
    draw = np.random.default_rng(0)
    for number in range(count):
        with Image.open(sources[number % len(sources)]) as image:
            picture = image.convert("RGB")
        side = round(min(picture.size) * draw.uniform(0.6, 1))
        left, top = (int(draw.integers(length - side + 1)) for length in picture.size)
        large = picture.resize((500, 500), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
        grained = np.asarray(large) + draw.normal(0, 6, (500, 500, 1))  # the enlarged cut alone is too smooth
        file = out / f"class-{number % 10}" / f"{number:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def some_of(folder: Path, out: Path, limit: int) -> Path:
    """A folder with links to about ``limit`` of the pictures of a folder, spread over it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files[:: len(files) // limit + 1]:
        link = out / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    return out


def main() -> None:
    """Times both sets and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, required=True, help="PACS in DomainBed's layout, domain/class/image.")
    parser.add_argument("--pictures", type=Path, required=True, help="Photographs to make the 2,000 JPEGs from.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoding.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="Use about this many pictures of each set, to try the script.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_jpegs(options.pictures, work / "jpegs", options.limit or 2000)
        pacs = some_of(options.pacs, work / "pacs", options.limit) if options.limit else options.pacs
        sets = {
            name: bench_set(place, work / f"caches of {name}", options.rounds)
            for name, place in {"PACS": pacs, "500 px JPEGs": work / "jpegs"}.items()
        }
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "Pillow": PIL.__version__},
        "batch size": BATCH,
        "sets": sets,
        "targets": [
            {
                "set": name,
                "what": what,
                "at most": most,
                "reached": entry["of the best loader"][what],
                "met": entry["of the best loader"][what] <= most,
            }
            for name, entry in sets.items()
            for what, most in TARGETS
        ],
    }
    write_json(options.out, results)
    print(options.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
