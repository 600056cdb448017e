"""The precision that is the fastest on a device, and the line about it at the start of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import shiftproof as sp
from shiftproof import progress
from shiftproof.cli.console import live_progress
from shiftproof.models import precision
from shiftproof.models.precision import precision_advice, resolved_precision, runs_bfloat16_fast
from shiftproof.runs.file import RunFile

SAPPHIRE = "processor : 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n\nprocessor : 1\nflags\t\t: fpu\n"
MILAN = "processor : 0\nflags\t\t: fpu avx2\n"
GENOA = "processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n"
GRAVITON = "processor : 0\nFeatures\t: fp asimd bf16\n"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function that replaces the list of the processor's instructions."""

    def install(text: str | None, machine: str = "x86_64") -> None:
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(precision, "_CPU_INFO", file)
        monkeypatch.setattr(precision.platform, "machine", lambda: machine)

    return install


@pytest.mark.parametrize(
    ("text", "machine", "fast", "fastest"),
    [
        (SAPPHIRE, "x86_64", True, "bfloat16"),
        (MILAN, "x86_64", False, "float32"),
        (GENOA, "x86_64", None, "float32"),
        (GRAVITON, "aarch64", None, "float32"),
        (None, "arm64", None, "float32"),
        (None, "AMD64", None, "float32"),
    ],
)
def test_the_fastest_precision_follows_from_the_processor_s_instructions(
    processor, text: str | None, machine: str, fast: bool | None, fastest: str
) -> None:
    processor(text, machine)
    assert runs_bfloat16_fast() is fast
    assert resolved_precision("fastest", "cpu") == fastest
    assert resolved_precision("float32", "cpu") == "float32"
    line = precision_advice("float32", "cpu")
    assert line is not None
    assert line.startswith("precision float32: ")
    assert ("bfloat16 here" in line) == (fast is True)
    slow = precision_advice("bfloat16", "cpu")
    assert slow is not None
    assert ("float32 here" in slow) == (fast is False)


def test_the_fastest_precision_of_a_gpu_follows_from_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, given=capability: given)
        assert resolved_precision("fastest", "cuda:1") == expected
    assert precision_advice("float32", "cuda") is None
    assert resolved_precision("fastest", "mps") == "float32"


def test_a_training_says_at_its_start_which_precision_suits_the_processor(
    processor, few: sp.ShiftSuite, zero: sp.Classifier, tmp_path: Path
) -> None:
    processor(MILAN)
    settings = sp.FinetuneSettings(epochs=1, batch_size=4, precision="fastest", lr=1e-4)
    notes: list[str] = []
    with progress.reading_notes(notes.append):
        tuned = sp.finetune(zero, few, settings, device="cpu", checkpoints=tmp_path)
    assert notes == [
        "fine-tune: precision float32: bfloat16 is many times slower than float32 on a processor without AMX, "
        "as this one is"
    ]
    assert tuned.training["settings"]["precision"] == "fastest"
    assert tuned.training["precision"] == "float32"
    # The training is the one with the precision itself: its checkpoint is complete, so nothing is left to do.
    again = sp.finetune(
        zero, few, sp.FinetuneSettings(epochs=1, batch_size=4, lr=1e-4), device="cpu", checkpoints=tmp_path
    )
    assert all(torch.equal(entry, again.state_dict()[name]) for name, entry in tuned.state_dict().items())


def test_another_precision_on_another_processor_is_another_training(
    processor, few: sp.ShiftSuite, zero: sp.Classifier, tmp_path: Path
) -> None:
    settings = sp.FinetuneSettings(epochs=1, batch_size=4, precision="fastest", lr=1e-4)
    processor(MILAN)
    sp.finetune(zero, few, settings, device="cpu", checkpoints=tmp_path)
    processor(SAPPHIRE)
    with pytest.raises(sp.InputError, match="these differ: 'precision'"):
        sp.finetune(zero, few, settings, device="cpu", checkpoints=tmp_path)


def test_a_run_file_may_ask_for_the_fastest_precision() -> None:
    assert RunFile.resolve({"finetune": {"precision": "fastest"}}).finetune.precision == "fastest"
    with pytest.raises(sp.InputError, match=r"finetune\.precision"):
        RunFile.resolve({"finetune": {"precision": "quickest"}})


def test_the_console_prints_a_note_once(capsys: pytest.CaptureFixture[str]) -> None:
    with live_progress():
        progress.note("fine-tune: precision float32")
        progress.note("fine-tune: precision float32")
    assert capsys.readouterr().err == "fine-tune: precision float32\n"
