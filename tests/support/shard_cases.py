"""Tar shards that are refused, with the messages; the table in ``docs/inputs.md`` is generated from them."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.shards import add_member

PNG = b"\x89PNG"


@dataclass(frozen=True)
class ShardCase:
    """One kind of damage to a set with the shards ``test/0.tar`` to ``test/2.tar``, and the message that refuses it.

    ``documented`` is what the message names, as the page says it.
    """

    what: str
    damage: Callable[[Path], object]
    message: str
    documented: str


def write_test_shard(root: Path, *members: tuple[str, bytes], **fields: object) -> None:
    (root / "test/nshards.txt").unlink(missing_ok=True)
    with tarfile.open(root / "test/9.tar", "w") as archive:
        for name, content in members:
            add_member(archive, name, content, **fields)


def cut(root: Path, size: int) -> None:
    shard = root / "test/1.tar"
    shard.write_bytes(shard.read_bytes()[:size])


def overwrite_second_header(root: Path) -> None:
    content = bytearray((root / "test/1.tar").read_bytes())
    with tarfile.open(root / "test/1.tar") as archive:
        start = archive.getmembers()[2].offset
    content[start : start + 512] = b"\xff" * 512
    (root / "test/1.tar").write_bytes(content)


def end_of_members(root: Path) -> int:
    with tarfile.open(root / "test/1.tar") as archive:
        last = archive.getmembers()[-1]
    return last.offset_data + 512


BROKEN_SHARDS = (
    ShardCase(
        "a path out of the archive",
        lambda root: write_test_shard(root, ("../0.png", PNG), ("../0.cls", b"0")),
        r"9\.tar has the member '\.\./0\.png', whose name leads out",
        "the shard and the member",
    ),
    ShardCase(
        "an absolute path",
        lambda root: write_test_shard(root, ("/etc/0.png", PNG), ("/etc/0.cls", b"0")),
        r"9\.tar has the member '/etc/0\.png'",
        "the shard and the member",
    ),
    ShardCase(
        "no label",
        lambda root: write_test_shard(root, ("0.png", PNG)),
        r"the sample 0 in .*9\.tar has no label\. It needs a file 0\.cls",
        "the shard and the sample",
    ),
    ShardCase(
        "no picture",
        lambda root: write_test_shard(root, ("0.cls", b"0"), ("0.json", b"{}")),
        r"the sample 0 in .*9\.tar has no picture",
        "the shard and the sample",
    ),
    ShardCase(
        "a label out of range",
        lambda root: write_test_shard(root, ("0.png", PNG), ("0.cls", b"3")),
        r"the label of the sample 0 in .*9\.tar is '3'; it must be a number from 0 to 2",
        "the shard and the sample",
    ),
    ShardCase(
        "a label that is no number",
        lambda root: write_test_shard(root, ("0.png", PNG), ("0.cls", b"pear")),
        r"is 'pear'; it must be a number from 0 to 2",
        "the shard and the sample",
    ),
    ShardCase(
        "a negative label",
        lambda root: write_test_shard(root, ("0.png", PNG), ("0.cls", b"-1")),
        r"is '-1'; it must be a number",
        "the shard and the sample",
    ),
    ShardCase(
        "two pictures of one sample",
        lambda root: write_test_shard(root, ("0.png", PNG), ("0.jpg", PNG), ("0.cls", b"0")),
        r"the sample 0 in .*9\.tar has two pictures, 0\.png and 0\.jpg",
        "the shard, the sample and both files",
    ),
    ShardCase(
        "the files of a sample apart",
        lambda root: write_test_shard(root, ("0.png", PNG), ("1.png", PNG), ("0.cls", b"0"), ("1.cls", b"0")),
        r"9\.tar has two samples 0, or its files apart|the sample 0 in .*9\.tar has no label",
        "the shard and the sample",
    ),
    ShardCase(
        "a shard that ends within a picture",
        lambda root: cut(root, 700),
        r"1\.tar cannot be read \(unexpected end",
        "the shard",
    ),
    ShardCase(
        "a shard that ends between two files",
        lambda root: cut(root, end_of_members(root)),
        r"1\.tar cannot be read \(no valid header at byte \d+\).*download it again",
        "the shard",
    ),
    ShardCase(
        "a damaged header in the middle",
        overwrite_second_header,
        r"1\.tar cannot be read \(no valid header at byte",
        "the shard",
    ),
    ShardCase(
        "no tar file at all",
        lambda root: (root / "test/1.tar").write_text("<html>"),
        r"1\.tar cannot be read",
        "the shard",
    ),
    ShardCase(
        "an empty file",
        lambda root: (root / "test/1.tar").write_bytes(b""),
        r"1\.tar cannot be read \(empty file\)",
        "the shard",
    ),
    ShardCase(
        "a compressed shard",
        lambda root: (root / "test/1.tar").write_bytes(gzip.compress((root / "test/1.tar").read_bytes())),
        r"1\.tar cannot be read .*It is compressed.*gunzip it first",
        "the shard",
    ),
    ShardCase(
        "the pointer of Git LFS",
        lambda root: (root / "test/1.tar").write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"1\.tar is a Git LFS pointer",
        "the shard",
    ),
    ShardCase(
        "a missing shard",
        lambda root: (root / "test/1.tar").unlink(),
        r"lacks 1 shard of the 3 that nshards\.txt states: '1\.tar'",
        "the folder and the shard",
    ),
    ShardCase(
        "a number of shards that is none",
        lambda root: (root / "test/nshards.txt").write_text("three"),
        r"nshards\.txt is 'three'",
        "the file and its text",
    ),
    ShardCase(
        "an empty class name",
        lambda root: (root / "classnames.txt").write_text("pear\n\nlemon\n"),
        r"line 2 of .*classnames\.txt is empty",
        "the file and the line",
    ),
)


def shard_table() -> str:
    """The table of the page."""
    rows = [f"| {case.what} | is refused; the message names {case.documented} |" for case in BROKEN_SHARDS]
    skipped = "| links, devices, and what an operating system left | are skipped, with one warning that counts them |"
    return "\n".join(["| in the shards | what happens |", "|---|---|", skipped, *rows])
