"""Commands that several processes share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support import processes, small_batches
from support.commands import Call, CommandResult, data_flags, logged_steps, quick_training_flags

import shiftproof as sp
from shiftproof.data.decoding import SIXTEEN_BITS

pytestmark = pytest.mark.multiprocess

FORKED = ["--standalone", "--nproc-per-node", "2", "--start-method", "fork", "--run-path"]
COMMAND = Path(sp.__file__).with_name("__main__.py")


def torchrun(*arguments: str | Path, cwd: Path, command: str | Path = COMMAND) -> CommandResult:
    """A command in two processes that share the work, which are forked: that saves the seconds of their imports."""
    ended = processes.run("module", "torch.distributed.run", *FORKED, command, *arguments, cwd=cwd)
    return CommandResult(ended.returncode, ended.stdout, ended.stderr)


def test_two_processes_fine_tune_as_one_does_and_one_of_them_speaks(folders: Path, tmp_path: Path, call: Call) -> None:
    settings = ["finetune", "tiny", *data_flags(folders), *quick_training_flags(batch_size=6)]
    shared = torchrun(*settings, "--out", "two", cwd=tmp_path)
    assert shared.code == 0, shared.err
    assert call(*settings, "--out", "one").code == 0
    assert shared.out.count("the classifier is two") == 1
    assert shared.out.count("Clopper-Pearson") == 1
    assert shared.err.count("fine-tune: 3 done") == 1
    one, two = (
        [json.loads(line) for line in Path(name, "results.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("one", "two")
    )
    assert [(line["set"], line["n"]) for line in two] == [("reference", 9), ("sketch", 9)]
    for alone, together in zip(one, two, strict=True):
        assert together["n"] == alone["n"]
        assert together["accuracy"] == pytest.approx(alone["accuracy"], abs=1.5 / 9)
    assert logged_steps("two") == [1, 2, 3]
    # A refusal is told by one, and no other stays behind with a traceback of its own.
    refused = torchrun(*settings, "--out", "two", cwd=tmp_path)
    assert refused.code != 0
    assert refused.err.count("shiftproof: two already holds") == 1
    assert "gloo" not in refused.err and "all_reduce" not in refused.err
    # What is saved is what was scored.
    tuned = sp.load_classifier("two")
    sketches = sp.data.load_set(f"folder:{folders}/sketch", tuned.classes)
    assert sp.evaluation.accuracy(sp.predict(tuned, sketches).logits, sketches.labels) == two[1]["accuracy"]


@pytest.mark.filterwarnings("ignore:.*had to be converted:UserWarning")
def test_two_processes_share_the_training_and_the_evaluation_of_a_run(
    folders: Path, tmp_path: Path, call: Call
) -> None:
    folders = Path(shutil.copytree(folders, tmp_path / "fruit"))
    # The fourth sketch is in the second process's share of the evaluation.
    grey = np.full((32, 40), 40_000, dtype=np.uint16)
    Image.fromarray(grey).save(folders / "sketch" / "pear" / "pear-0.png")
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = {"reference": splits, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}}
    settings = {"model": "tiny", "suite": suite, "alphas": 3}
    Path("fruit.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["run", "fruit.yaml", *quick_training_flags(batch_size=6), "--out", "out"]
    shared = torchrun(*command, cwd=tmp_path, command=small_batches.__file__)
    assert shared.code == 0, shared.err
    assert shared.out.count("report: out/report.html") == 1
    assert shared.err.count("fine-tune: 3 done") == shared.err.count("sweep: 81 done") == 1
    for name in ("run.yaml", "stages.json", "path.json", "rules.json", "results.jsonl", "report.html"):
        assert Path("out", name).is_file()
    assert logged_steps("out") == [1, 2, 3]
    summary = json.loads(Path("out/summary.json").read_text(encoding="utf-8"))
    assert summary["conversions"] == {f"folder:{folders}/sketch": {SIXTEEN_BITS: 1}}
    for model in ("zero_shot", "fine_tuned", "ensemble"):
        classifier = sp.load_classifier(Path("out", model))
        for name, split in (("reference", "test"), ("sketch", "sketch")):
            images = sp.data.load_set(f"folder:{folders}/{split}", classifier.classes)
            reported = summary["models"][model][name]
            assert (reported["n"], reported["accuracy"]) == (
                9,
                sp.evaluation.accuracy(sp.predict(classifier, images).logits, images.labels),
            )
    # Alone, the directory can be gone on with.
    assert call("run", "out/run.yaml", "--out", "out", "--resume").code == 0
