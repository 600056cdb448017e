"""``wds:PATH``: tar shards as webdataset and CLIP_benchmark write them, read where they lie without extracting them.

A sample is the files ``KEY.jpg`` (or another suffix of pictures) and ``KEY.cls``, whose text is the number of the
class, that is its line in ``classnames.txt``, counted from 0. The shards are ``PATH/test/0.tar`` and so on, or lie in
PATH itself.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shiftproof.data.formats.addresses import parse_address
from shiftproof.data.formats.entries import Entry, Listing, NamedPicture
from shiftproof.data.formats.splits import choose_split
from shiftproof.data.labels import ClassSpace
from shiftproof.data.pictures import SkippedFiles, picture_suffixes, skip_reason
from shiftproof.data.sources import StoredPicture, file_stamp
from shiftproof.errors import InputError, counted, listed
from shiftproof.storage import expanded, require_no_pointer

_BLOCK = 512  # bytes of a tar header
_LARGEST_TEXT = 1 << 16
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd"}
WDS_OPTIONS = ("split",)


@dataclass(frozen=True, slots=True)
class TarPicture(StoredPicture):
    """A picture in an uncompressed tar file, read from its place there."""

    shard: Path
    member: str
    offset: int
    length: int

    @property
    def name(self) -> str:
        return self.member

    @property
    def size(self) -> int:
        return self.length

    @property
    def stamp(self) -> str:
        return f"{self.offset} {self.length} {file_stamp(self.shard)}"

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def __str__(self) -> str:
        return f"{self.member} in {self.shard}"


@dataclass
class Sample:
    """The files of a shard that share a key: the picture, and the contents of those that hold text."""

    shard: Path
    key: str
    picture: TarPicture | None = None
    texts: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"the sample {self.key} in {self.shard}"

    @property
    def id(self) -> str:
        """A name that no other sample has, since many writers number the keys of every shard from 0."""
        return f"{self.shard.stem}/{self.key}"


def read_wds(address: str, split: str) -> Listing:
    """One entry for every picture in the shards of a split, in the order of the shards.

    Raises an InputError that names the shard, and the sample where there is one, for missing and damaged shards,
    members whose names lead out of the archive, and samples without a picture or a valid label.
    """
    shards = find_shards(address, split)
    classes = _class_space(shards[0].parent)
    entries = []
    for sample in _samples(shards, ("cls",)):
        label = _label(sample, classes)
        entries.append(Entry(_picture(sample), classes.ids[label] if classes else str(label), sample.id))
    if not entries:
        raise InputError(f"wds:{address} contains no sample. It needs pairs of files such as 0.jpg and 0.cls.")
    return Listing(entries, classes)


def wds_pictures(address: str, split: str) -> Iterator[NamedPicture]:
    """The pictures of a split one by one, whether they have labels or not; errors are those of ``read_wds``."""
    for sample in _samples(find_shards(address, split), ()):
        yield NamedPicture(sample.id, _picture(sample))


def wds_captions(address: str) -> Iterator[tuple[TarPicture, list[str]]]:
    """The pictures of the training split, each with the caption in its ``KEY.txt``."""
    for sample in _samples(find_shards(address, "train"), ("txt",)):
        if not sample.texts.get("txt", "").strip():
            raise InputError(f"{sample} has no caption. It needs a file {sample.key}.txt beside its picture.")
        yield _picture(sample), [sample.texts["txt"].strip()]


def find_shards(address: str, split: str) -> list[Path]:
    """The shards of a split: those of its folder, those of the folder itself, or the one shard that is named.

    Where ``nshards.txt`` says how many there are, they are ``0.tar`` and so on. Raises an InputError if one is missing.
    """
    parsed = parse_address(address, WDS_OPTIONS)
    root, given = expanded(parsed.place), parsed.options.get("split")
    if "://" in parsed.place:
        raise InputError(f"wds:{address} is not on this machine. Download the shards, and name their folder.")
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise InputError(f"the folder {root} does not exist. Check the path after 'wds:'.")
    if given is None and ((root / "nshards.txt").is_file() or _tar_files(root)):
        return _shards_in(root)
    splits = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and _tar_files(folder))
    if not splits and given is None:
        raise InputError(f"the folder {root} contains no shards. It must look like test/0.tar, or 0.tar.")
    return _shards_in(root / choose_split(f"wds:{root}", splits, split, given))


def _shards_in(folder: Path) -> list[Path]:
    present = _tar_files(folder)
    stated = folder / "nshards.txt"
    if not stated.is_file():
        if not present:
            raise InputError(f"the folder {folder} contains no .tar file. Download the shards again.")
        return present
    text = stated.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{stated} is {text[:40]!r}; it must be the number of shards. Correct it or remove it.")
    shards = [folder / f"{number}.tar" for number in range(int(text))]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(
            f"{folder} lacks {counted(len(missing), 'shard')} of the {len(shards)} that nshards.txt states: "
            f"{listed(missing, 5)}. Download them, or correct the number."
        )
    return shards


def _tar_files(folder: Path) -> list[Path]:
    """The tar files of a folder, 10.tar after 9.tar."""
    names = [path for path in folder.glob("*.tar") if path.is_file() and not skip_reason(path.name)]
    return sorted(names, key=lambda path: [(int(n or 0), text) for n, text in re.findall(r"(\d*)(\D*)", path.name)])


def _class_space(folder: Path) -> ClassSpace | None:
    """The classes of ``classnames.txt`` beside the shards or in the folder above, one a line; None without the file."""
    file = next((f for f in (folder / "classnames.txt", folder.parent / "classnames.txt") if f.is_file()), None)
    if file is None:
        return None
    try:
        names = file.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    if empty := [number for number, name in enumerate(names, 1) if not name.strip()]:
        raise InputError(f"line {empty[0]} of {file} is empty; it must be the name of class {empty[0] - 1}.")
    return ClassSpace.from_names([name.strip() for name in names])


def _label(sample: Sample, classes: ClassSpace | None) -> int:
    if "cls" not in sample.texts:
        raise InputError(f"{sample} has no label. It needs a file {sample.key}.cls with the number of its class.")
    text = sample.texts["cls"].strip()
    number = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
    if number < 0 or (classes and number >= len(classes)):
        rule = f"0 to {len(classes) - 1}, its line in classnames.txt counted from 0" if classes else "0 or more"
        raise InputError(f"the label of {sample} is {text[:40]!r}; it must be a number from {rule}. Correct the shard.")
    return number


def _picture(sample: Sample) -> TarPicture:
    if sample.picture is None:
        raise InputError(f"{sample} has no picture, such as {sample.key}.jpg. Write the shard again.")
    return sample.picture


def _samples(shards: list[Path], texts: tuple[str, ...]) -> Iterator[Sample]:
    """The samples of several shards, each with the contents of its files with the suffixes ``texts``."""
    skipped, suffixes = SkippedFiles(), picture_suffixes()
    for shard in shards:
        keys: set[str] = set()
        sample: Sample | None = None
        for member, content in _members(shard, texts, skipped):
            name = PurePosixPath(member.name)
            stem, _, suffix = name.name.partition(".")
            key = str(name.parent / stem)
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                if key in keys:
                    raise InputError(f"{shard} has two samples {key}, or its files apart. Write the shard again.")
                keys.add(key)
                sample = Sample(shard, key)
            if f".{suffix.lower()}" in suffixes:
                if sample.picture is not None:
                    raise InputError(f"{sample} has two pictures, {sample.picture.name} and {member.name}. Remove one.")
                sample.picture = TarPicture(shard, member.name, member.offset_data, member.size)
            elif content is not None:
                sample.texts[suffix.lower()] = content
        if sample is not None:
            yield sample
    skipped.warn(f"wds:{shards[0].parent}")


def _members(
    shard: Path, texts: tuple[str, ...], skipped: SkippedFiles
) -> Iterator[tuple[tarfile.TarInfo, str | None]]:
    """The regular files in a shard, with the content of those whose suffix is in ``texts``.

    Nothing is extracted, so that links are skipped. Raises an InputError for a damaged shard and for unsafe names.
    """
    require_no_pointer(shard)
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:", errors="strict") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would hold every header
                if member.isdir() or not _is_sample_file(member, shard, skipped):
                    continue
                content = None
                if member.name.rpartition("/")[2].partition(".")[2].lower() in texts:
                    file.seek(member.offset_data)
                    content = file.read(min(member.size, _LARGEST_TEXT)).decode("utf-8")
                yield member, content
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no valid header at byte {archive.offset}")
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"the shard {shard} cannot be read ({error}). {_remedy(shard)}") from error


def _is_sample_file(member: tarfile.TarInfo, shard: Path, skipped: SkippedFiles) -> bool:
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    if ".." in parts or member.name.startswith(("/", "\\")):
        raise InputError(
            f"{shard} has the member {member.name!r}, whose name leads out of the archive. No writer of shards makes "
            "such names; do not trust the file, or write it again with relative names."
        )
    reasons = [reason for part in parts if (reason := skip_reason(part))]
    if not member.isreg() or member.issparse():
        reasons.append("links, devices or sparse files in an archive")
    if reasons:
        skipped.add(reasons[0], member.name)
    return not reasons


def _remedy(shard: Path) -> str:
    with shard.open("rb") as file:
        start = file.read(8)
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            return f"It is compressed, so that its pictures have no place of their own: {command} it first."
    return "It is damaged or incomplete; download it again."
