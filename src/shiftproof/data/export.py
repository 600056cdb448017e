"""Suites written to disk as folders of images."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from PIL import Image

from shiftproof import progress
from shiftproof.data.suites import ATTRIBUTIONS, ShiftSuite, require_suite
from shiftproof.errors import InputError
from shiftproof.storage import require_directory_name


def export_suite(suite: ShiftSuite, out: str | Path) -> int:
    """Writes PNG files to ``out/reference/{train,validation,test}/CLASS/`` and ``out/shifts/NAME/CLASS/``.

    The folder appears complete or not at all. Returns the number of images. Raises an InputError if ``out`` is a file
    or a folder that is not empty.
    """
    require_suite(suite)
    out = Path(out)
    require_directory_name(out, "an export")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty. Choose another `out`, or delete it.")
    reference = suite.reference
    folders = {
        "reference/train": reference.train,
        "reference/validation": reference.validation,
        "reference/test": reference.test,
        **{f"shifts/{shift.name}": shift.data for shift in suite.shifts},
    }
    total, done = sum(len(images) for images in folders.values()), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for folder, images in folders.items():
            for i, label in enumerate(images.labels):
                # Ids may contain slashes, as those of folder sets do; the class folder is named by the label.
                file = temporary / folder / suite.classes.ids[label] / f"{Path(images.ids[i]).stem}.png"
                while file.exists():
                    file = file.with_stem(f"{file.stem}-{i}")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images.read(i)).save(file)
                done += 1
                progress.report("export", done, total)
        if attribution := ATTRIBUTIONS.get(suite.name):
            (temporary / "ATTRIBUTION.txt").write_text(attribution + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return total
