"""Starts without a text tower, from their names, in every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.classifiers import weight_bytes
from support.commands import Call, data_flags

import shiftproof as sp
from shiftproof.ensembling.batch_norm import reestimate_batch_norm
from shiftproof.finetuning.loop import few_shot
from shiftproof.models.encoders import without_head
from shiftproof.runs.comparisons import PairFile, compare_agreement
from shiftproof.runs.inputs import build_start, load_run_suite
from shiftproof.runs.starts import StartSettings, build_named_start, load_scored
from shiftproof.storage import read_json, write_json
from shiftproof.weights.checkpoints import write_state_dict

QUICK = {"epochs": 1, "batch_size": 9, "lr": 1e-3, "warmup_steps": 0}
FISH = {"n01440764": (200, 180, 40), "n01443537": (230, 90, 20), "n01484850": (90, 110, 130)}


def settings_of(folders: Path, **changes: Any) -> dict[str, Any]:
    reference = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = {"reference": reference, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}}
    plain = {"model": "timm:test_resnet", "random_weights": True, "suite": suite, "finetune": QUICK, "alphas": 3}
    return {**plain, "device": "cpu", **changes}


def run_file(folders: Path, **changes: Any) -> sp.RunFile:
    return sp.RunFile.resolve(settings_of(folders, **changes))


def start_of(run_file: sp.RunFile) -> sp.Classifier:
    return build_start(run_file, load_run_suite(run_file))


@pytest.fixture(scope="module")
def fish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of each of three classes, in folders that are named by WordNet ids and sort in their order."""
    root = tmp_path_factory.mktemp("fish")
    for wnid, colour in FISH.items():
        for number in range(2):
            path = root / wnid / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40 + number, 40), colour).save(path)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("model", ["timm:test_resnet", "torchvision:mobilenet_v3_small"])
def test_a_model_without_a_text_tower_starts_from_a_probe(folders: Path, model: str) -> None:
    start = start_of(run_file(folders, model=model))
    assert (start.head, start.source, start.classes.ids) == ("probe", model, ("lemon", "pear", "red_apple"))
    assert max(trial["validation"] for trial in start.training["probe"]) > 0.9
    assert not start.network.normalised


@pytest.mark.slow
def test_the_start_depends_neither_on_the_seed_nor_on_the_settings_of_the_fine_tuning(
    folders: Path, tmp_path: Path
) -> None:
    write_state_dict(sp.load_encoder("timm:test_resnet", seed=7).model.state_dict(), tmp_path / "w.safetensors")
    changes = {"seed": 1, "finetune": {**QUICK, "crop_scale": [0.2, 0.3], "augment": ["flip"]}}
    weights = {"weights": str(tmp_path / "w.safetensors")}  # those of a name without a tag depend on the seed
    first, second = (start_of(run_file(folders, **weights, **some)) for some in ({}, changes))
    assert weight_bytes(first) == weight_bytes(second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "zero-shot"}, "'timm:test_resnet' has no text tower.*`head='probe'`"),
        ({"model": "tiny", "head": "probe"}, "the head 'probe' is for models without a text tower"),
        ({"model": "tiny", "head": "own"}, "the head 'own' is for models without a text tower"),
        (
            {"head": "own"},
            "has 1,000 other classes, such as 'n01440764'; it lacks 3 of the 3 classes of the data: 'lemon'",
        ),
        ({"random_weights": False}, "'timm:test_resnet' has random weights"),
    ],
)
def test_a_head_that_the_model_cannot_have_is_refused_with_the_way_out(
    folders: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(sp.InputError, match=message):
        start_of(run_file(folders, **changes))


def test_the_own_head_of_an_imagenet_network_is_matched_by_wordnet_ids(fish: Path) -> None:
    own = build_named_start("lite0", sp.ClassSpace.from_ids(sorted(FISH, reverse=True)), StartSettings(head="own"))
    whole = load_scored("lite0")
    rows = [whole.classes.ids.index(wnid) for wnid in own.classes.ids]
    assert rows == [2, 1, 0]
    assert torch.equal(own.network.head.weight, whole.network.head.weight[rows])
    assert own.classes.names[-1] == "tench, Tinca tinca"
    assert (own.head, len(whole.classes)) == ("own", 1000)


def test_a_transformer_without_a_head_has_features_for_a_probe_and_no_head_of_its_own() -> None:
    encoder = sp.load_encoder("timm:vit_tiny_patch16_dinov3_qkvb")
    assert without_head(encoder)[1] == 192
    with pytest.raises(sp.InputError, match="has no linear head of its own.*start from a linear probe"):
        sp.own_head_classifier(encoder)


def test_a_head_whose_classes_are_numbers_is_not_matched_with_some_of_them() -> None:
    encoder = sp.load_encoder("timm:test_resnet")
    encoder.model.reset_classifier(7)
    numbers = sp.ClassSpace.from_ids([str(i) for i in range(7)])
    assert sp.own_head_classifier(encoder, numbers).classes.ids == numbers.ids
    with pytest.raises(sp.InputError, match="has 7 classes that have only numbers"):
        sp.own_head_classifier(encoder, sp.ClassSpace.from_ids(["0", "1"]))


def test_a_classifier_directory_has_a_head_already(folders: Path, tmp_path: Path) -> None:
    saved = sp.save_classifier(start_of(run_file(folders)), tmp_path / "start")
    assert start_of(run_file(folders, model=str(saved))).head == "probe"
    with pytest.raises(sp.InputError, match="is a classifier directory, whose classifier has a head. Omit `head`"):
        start_of(run_file(folders, model=str(saved), head="probe"))


@pytest.mark.slow
def test_a_run_goes_through_all_stages_and_averages_batch_norm(folders: Path, tmp_path: Path) -> None:
    record = sp.run_pipeline(run_file(folders), tmp_path / "run")
    start, tuned, ensemble = (sp.load_classifier(tmp_path / "run" / n) for n in ("zero_shot", "fine_tuned", "ensemble"))
    assert (start.head, tuned.head, ensemble.head) == ("probe", "trained", "interpolated")
    name = "encoder.bn1.running_var"
    averaged = torch.lerp(start.state_dict()[name], tuned.state_dict()[name], 0.5)
    torch.testing.assert_close(ensemble.state_dict()[name], averaged)
    assert not torch.equal(start.state_dict()[name], tuned.state_dict()[name])
    assert set(record.models["ensemble"]) == {"reference", "sketch"}
    assert record.start == {"model": "timm:test_resnet", "head": "probe"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "timm:test_resnet with a linear probe, which this page calls the start" in page
    resumed = sp.run_pipeline(run_file(folders), tmp_path / "run", resume=True)
    assert resumed.models == record.models


@pytest.mark.long
def test_a_run_re_estimates_batch_norm_along_its_path(folders: Path, tmp_path: Path) -> None:
    asked = run_file(folders, batch_norm="re-estimated", finetune={**QUICK, "shots": 2})
    record = sp.run_pipeline(asked, tmp_path / "run")
    start, tuned, ensemble = (sp.load_classifier(tmp_path / "run" / n) for n in ("zero_shot", "fine_tuned", "ensemble"))
    train = load_run_suite(asked).reference.train.relabelled(start.classes)
    few = few_shot(train, 2, seed=asked.seed)  # what the fine-tuning saw
    expected = reestimate_batch_norm(sp.wise_ft(start, tuned, 0.5), few, device="cpu")
    assert weight_bytes(ensemble) == weight_bytes(expected)
    assert ensemble.training["batch_norm"]["images"] == len(few) < len(train)
    # The path measured the ensemble that was saved, and the models at its ends.
    for alpha, model in ((0.0, "zero_shot"), (0.5, "ensemble"), (1.0, "fine_tuned")):
        assert record.path.at(alpha).accuracy["sketch"] == record.models[model]["sketch"].accuracy
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (record.batch_norm, summary["batch_norm"]) == ("re-estimated", "re-estimated")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<dt>Batch norm</dt><dd>re-estimated on the training images" in page
    # A run that is resumed after its path makes the same ensemble.
    seconds = read_json(tmp_path / "run" / "stages.json")
    write_json(tmp_path / "run" / "stages.json", {k: v for k, v in seconds.items() if k not in ("sweep", "ensemble")})
    resumed = sp.run_pipeline(asked, tmp_path / "run", resume=True)
    assert (resumed.models, resumed.path) == (record.models, record.path)
    assert weight_bytes(sp.load_classifier(tmp_path / "run" / "ensemble")) == weight_bytes(ensemble)
    with pytest.raises(sp.InputError, match="these differ: 'batch_norm'"):
        sp.run_pipeline(run_file(folders, finetune={**QUICK, "shots": 2}), tmp_path / "run", resume=True)


def test_a_run_of_a_network_without_batch_norm_is_refused_before_it_begins(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="batch norm cannot be re-estimated for tiny"):
        sp.run_pipeline(run_file(folders, model="tiny", batch_norm="re-estimated"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_every_command_takes_such_a_model(call: Call, folders: Path, tmp_path: Path) -> None:
    data, model = data_flags(folders), ("timm:test_resnet", "--random-weights", "--device", "cpu")
    quick = [flag for key, value in QUICK.items() for flag in ("--set", f"finetune.{key}={value}")]
    assert call("zeroshot", *model, *data, "--out", "start").code == 0
    assert call("finetune", *model, *data, *quick, "--set", "finetune.augment=[flip]", "--out", "tuned").code == 0
    swept = call("sweep", "start", "tuned", *data, "--alphas", "3", "--reestimate-batch-norm", "--out", "swept")
    assert swept.code == 0 and "statistics re-estimated" in swept.out
    again = ("sweep", "start", "tuned", *data, "--alphas", "3", "--batch-norm", "re-estimated", "--out")
    refused = call(*again, "swept", "--resume")
    assert refused.code == 2 and "these differ: 'batch_norm'" in refused.err
    renewed = call(*again, "renewed")
    assert renewed.code == 0 and "batch-norm statistics re-estimated" in renewed.out
    assert call(*again, "renewed", "--resume").code == 0
    both = (sp.load_classifier(name) for name in ("renewed/ensemble", "swept/ensemble_batch_norm"))
    assert len({str(weight_bytes(ensemble)) for ensemble in both}) == 1
    assert call("merge", "start", "tuned", "--alpha", "0.5", "--out", "merged").code == 0
    assert call("evaluate", "merged", "--test", f"folder:{folders}/test").code == 0
    merged, ensemble = sp.load_classifier("merged"), sp.load_classifier("swept/ensemble")
    assert weight_bytes(merged) == weight_bytes(ensemble)
    assert call("diagnose", "movement", "start", "tuned").code == 0
    assert read_json(Path("start/classifier.json"))["head"] == "probe"


@pytest.mark.filterwarnings("default:test has no image of:UserWarning")
def test_a_network_is_scored_with_its_own_head_by_its_name(call: Call, fish: Path) -> None:
    result = call("evaluate", "lite0", "--test", f"folder:{fish}", "--out", "scores", "--device", "cpu")
    assert result.code == 0 and "and 992 more; its accuracy is over the others" in result.err
    (record,) = map(json.loads, Path("scores/results.jsonl").read_text().splitlines())
    assert (record["model"], record["n"], record["class_count"]) == ("lite0", 6, 1000)
    answer = call("predict", "lite0", str(fish / "n01440764" / "0.png"), "--top", "1", "--json", "--device", "cpu")
    assert answer.code == 0
    assert json.loads(answer.out)[0]["top"][0]["class"] in load_scored("lite0").classes.names


def test_the_command_line_names_its_options(call: Call, folders: Path) -> None:
    result = call("zeroshot", "timm:test_resnet", *data_flags(folders), "--head", "zero-shot", "--random-weights")
    assert result.code == 2
    assert "Choose --head probe, a linear probe, or --head own" in result.err
    result = call("evaluate", "timm:test_resnet", "--test", f"folder:{folders}/test")
    assert result.code == 2 and "random weights" in result.err
    result = call("evaluate", "tiny", "--test", f"folder:{folders}/test")
    assert result.code == 2 and "is not a classifier directory" in result.err


@pytest.mark.slow
def test_two_networks_are_compared_with_their_own_heads_also_without_labels(fish: Path) -> None:
    pair = PairFile(("lite0", "lite0"), unlabelled=fish, head="own", device="cpu")
    (record,) = compare_agreement(pair).pairs
    assert record.set == fish.name
    with pytest.raises(sp.InputError, match="there are no training images for a linear probe"):
        compare_agreement(PairFile(("lite0", "lite0"), data=f"folder:{fish}", device="cpu"))
    with pytest.raises(sp.InputError, match="unlabelled images do not name the classes"):
        compare_agreement(PairFile(("tiny", "tiny"), unlabelled=fish, device="cpu"))
