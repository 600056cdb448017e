"""The claim of an output directory, case by case, and the stages of a run against what they write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import shiftproof as sp
from shiftproof.runs.directory import INTERVENTION, RUN, STAGE, STUDY, SWEEP, TRAINING, JobFiles, Request, claim
from shiftproof.runs.pipeline import STAGES

JOBS = (RUN, STAGE, TRAINING, SWEEP, STUDY, INTERVENTION)
RECORDED = tuple(files for files in JOBS if files.request)


def asking(text: str) -> Request:
    """A request that is its text."""
    return Request(lambda _: text, lambda file: [] if file.read_text(encoding="utf-8") == text else ["lr"])


def filled(out: Path, files: JobFiles, request: str = "lr: 1") -> Path:
    """A directory that a finished job of this kind left."""
    for name in files.artefacts:
        (out / name).mkdir(parents=True) if "." not in name else (out / name).write_text(name, encoding="utf-8")
    if files.request:
        (out / files.request).write_text(request, encoding="utf-8")
    return out


def contents(out: Path) -> Mapping[str, str]:
    """Every visible file and folder, with a file's text."""
    shown = [path for path in sorted(out.rglob("*")) if not path.name.startswith(".")]
    return {str(path.relative_to(out)): path.read_text("utf-8") if path.is_file() else "" for path in shown}


@pytest.mark.parametrize("files", JOBS, ids=lambda files: files.noun)
@pytest.mark.parametrize("resume", [False, True])
def test_a_new_directory_is_taken_and_records_the_request(tmp_path: Path, files: JobFiles, resume: bool) -> None:
    with claim(tmp_path / "out", files, asking("lr: 1"), resume=resume) as continued:
        assert not continued
        assert contents(tmp_path / "out") == ({files.request: "lr: 1"} if files.request else {})


@pytest.mark.parametrize("files", JOBS, ids=lambda files: files.noun)
def test_results_are_neither_touched_nor_deleted_unless_that_is_asked_for(tmp_path: Path, files: JobFiles) -> None:
    before = contents(filled(tmp_path, files))
    with (
        pytest.raises(sp.InputError, match=f"already holds {files.content}.*`overwrite=True`"),
        claim(tmp_path, files, asking("lr: 1")),
    ):
        pass
    assert contents(tmp_path) == before
    with claim(tmp_path, files, asking("lr: 2"), overwrite=True) as continued:
        assert not continued
        assert contents(tmp_path) == ({files.request: "lr: 2"} if files.request else {})


@pytest.mark.parametrize("files", JOBS, ids=lambda files: files.noun)
@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_lost(tmp_path: Path, files: JobFiles, overwrite: bool) -> None:
    filled(tmp_path, files)
    (tmp_path / "notes.txt").write_text("do not lose me", encoding="utf-8")
    before = contents(tmp_path)
    with (
        pytest.raises(sp.InputError, match=f"'notes.txt', which no {files.noun} wrote"),
        claim(tmp_path, files, asking("lr: 1"), overwrite=overwrite),
    ):
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("files", RECORDED, ids=lambda files: files.noun)
def test_the_same_request_is_continued_beside_foreign_files(tmp_path: Path, files: JobFiles) -> None:
    filled(tmp_path, files)
    (tmp_path / "notes.txt").write_text("do not lose me", encoding="utf-8")
    before = contents(tmp_path)
    with claim(tmp_path, files, asking("lr: 1"), resume=True) as continued:
        assert continued
        assert contents(tmp_path) == before


@pytest.mark.parametrize("files", RECORDED, ids=lambda files: files.noun)
def test_another_request_is_not_continued(tmp_path: Path, files: JobFiles) -> None:
    before = contents(filled(tmp_path, files))
    with (
        pytest.raises(sp.InputError, match=rf"other settings than this {files.noun} .these differ: 'lr'"),
        claim(tmp_path, files, asking("lr: 2"), resume=True),
    ):
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("files", RECORDED, ids=lambda files: files.noun)
def test_results_without_their_request_are_not_continued(tmp_path: Path, files: JobFiles) -> None:
    (filled(tmp_path, files) / str(files.request)).unlink()
    with (
        pytest.raises(sp.InputError, match="already holds"),
        claim(tmp_path, files, asking("lr: 1"), resume=True),
    ):
        pass


@pytest.mark.parametrize("files", RECORDED, ids=lambda files: files.noun)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_users_file_of_the_request_s_name_is_not_replaced(tmp_path: Path, files: JobFiles, overwrite: bool) -> None:
    (tmp_path / str(files.request)).write_text("mine", encoding="utf-8")
    request = Request("lr: 1", lambda file: [], is_request=lambda file: "mine" not in file.read_text(encoding="utf-8"))
    with (
        pytest.raises(sp.InputError, match=f"'{files.request}', which no {files.noun} wrote"),
        claim(tmp_path, files, request, overwrite=overwrite),
    ):
        pass
    assert (tmp_path / str(files.request)).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("files", JOBS, ids=lambda files: files.noun)
def test_one_process_at_a_time(tmp_path: Path, files: JobFiles) -> None:
    with (
        claim(tmp_path, files, asking("lr: 1")),
        pytest.raises(sp.InputError, match="in use by another"),
        claim(tmp_path, files, asking("lr: 1"), overwrite=True),
    ):
        pass
    with (
        pytest.raises(sp.InputError, match="Give one of the two"),
        claim(tmp_path, files, asking("lr: 1"), resume=True, overwrite=True),
    ):
        pass


def test_every_stage_of_a_run_needs_earlier_ones_and_writes_what_a_run_may_delete() -> None:
    for number, stage in enumerate(STAGES):
        assert set(stage.needs) <= {earlier.name for earlier in STAGES[:number]}
        assert set(stage.writes) <= RUN.artefacts
