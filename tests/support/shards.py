"""Miniatures of data sets in tar shards and in parquet files, made from the pictures of a folder of classes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Picture = tuple[str, Path]  # the class of a picture, and its file


def labelled_pictures(folder: Path) -> list[Picture]:
    """The pictures of ``folder/CLASS/``, one of every class in turn, so that neither order nor folders tell labels."""
    by_class = [sorted(of.iterdir()) for of in sorted(folder.iterdir())]
    return [(file.parent.name, file) for row in zip(*by_class, strict=True) for file in row]


def add_member(archive: tarfile.TarFile, name: str, content: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


def write_shards(
    root: Path, split: str, pictures: Sequence[Picture], names: Sequence[str], *, per_shard: int = 4, first_key: int = 0
) -> Path:
    """Writes pictures as CLIP_benchmark does: ``SPLIT/0.tar`` with pairs of files, the keys of every shard from 0."""
    folder = root / split
    folder.mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n", encoding="utf-8")
    shards = [pictures[start : start + per_shard] for start in range(0, len(pictures), per_shard)]
    for number, shard in enumerate(shards):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for key, (class_name, file) in enumerate(shard, first_key):
                add_member(archive, f"s{key:07d}{file.suffix}", file.read_bytes())
                add_member(archive, f"s{key:07d}.cls", str(names.index(class_name)).encode())
    (folder / "nshards.txt").write_text(f"{len(shards)}\n", encoding="utf-8")
    return root


def write_parquet(
    path: Path,
    columns: Mapping[str, Sequence[object]],
    pictures: Sequence[Path],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    image: str = "image",
    rows_per_group: int = 4,
) -> Path:
    """Writes pictures as ``datasets`` does, with its metadata; ``names`` are the class names of columns of labels."""
    import datasets

    cells = [{"bytes": file.read_bytes(), "path": file.name} for file in pictures]
    features = datasets.Features(
        {
            image: datasets.Image(),
            **{
                column: datasets.ClassLabel(names=list(names[column]))
                if names and column in names
                else datasets.Value("int64" if isinstance(values[0], int) else "string")
                for column, values in columns.items()
            },
        }
    )
    table = pa.table({image: pa.array(cells, features.arrow_schema.field(image).type), **columns})
    table = table.cast(features.arrow_schema.remove_metadata()).replace_schema_metadata(features.arrow_schema.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


@dataclass(frozen=True)
class Container:
    """A format of larger files that hold pictures; ``write`` fills a folder with some and returns the data name."""

    name: str
    suffix: str
    write: Callable[[Path, Sequence[Path]], str]


def _in_shards(folder: Path, pictures: Sequence[Path]) -> str:
    return f"wds:{write_shards(folder, 'test', [('lemon', picture) for picture in pictures], ['lemon', 'pear'])}"


def _in_parquet(folder: Path, pictures: Sequence[Path]) -> str:
    labels = {"label": [0] * len(pictures)}
    return f"hf:{write_parquet(folder / 'test.parquet', labels, pictures, names={'label': ['lemon', 'pear']})}"


CONTAINERS = (Container("a tar shard", ".tar", _in_shards), Container("a parquet file", ".parquet", _in_parquet))
