"""Re-estimated batch norm: the statistics of the layers' own inputs, from nothing but the images given."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from support.classifiers import classifier_around, convolution_classifier, weight_bytes
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.cli.app import main
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.sets import array_set
from shiftproof.ensembling.batch_norm import has_batch_norm, reestimate_batch_norm
from shiftproof.ensembling.interpolation import ensemble_on_path
from shiftproof.ensembling.path import path_sets

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear"])


@pytest.fixture(scope="module")
def own() -> sp.Classifier:
    """A timm resnet with random weights and its own head; treat it as immutable."""
    return sp.own_head_classifier(sp.load_encoder("timm:test_resnet", seed=1))


@pytest.fixture(scope="module")
def train(folders: Path) -> sp.ImageSet:
    return sp.data.load_set(f"folder:{folders / 'train'}")


def plain(count: int = 24, name: str = "colours") -> sp.ImageSet:
    """Images of one colour each, in the order of their classes, as folders list them."""
    labels = np.sort(np.arange(count) % len(CLASSES))
    colours = np.array([[240, 210, 40], [200, 30, 40], [120, 190, 60]], dtype=np.uint8)

    def draw() -> NDArray[np.uint8]:
        return np.broadcast_to(colours[labels][:, None, None], (count, 16, 16, 3)).copy()

    return array_set(name, CLASSES, [str(i) for i in range(count)], labels, draw)


def pooled_classifier(*layers: nn.Module, **changes: Any) -> sp.Classifier:
    """Pooled colours through some layers; (B, 3) enter them."""
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)
    return classifier_around(encoder, nn.Linear(3, len(CLASSES)), CLASSES, **{"prompts": (), "head": "own", **changes})


def norms(network: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)
    }


def statistics(classifier: sp.Classifier, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    tensors = classifier.state_dict()
    return tensors[f"{name}.running_mean"].double().numpy(), tensors[f"{name}.running_var"].double().numpy()


@contextmanager
def inputs_of(layers: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        return lambda module, inputs: seen.__setitem__(name, inputs[0].detach().double())

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    yield seen
    for handle in handles:
        handle.remove()


def test_statistics_are_those_of_every_layers_inputs(own: sp.Classifier, train: sp.ImageSet) -> None:
    result = reestimate_batch_norm(own, train)
    network = deepcopy(
        own.network_on(device="cpu")
    ).train()  # nothing in this network but batch norm knows the difference
    layers = norms(network)
    pixels = next(evaluation_batches(train, own.preprocessing, len(train)))
    with torch.no_grad(), inputs_of(layers) as seen:
        network(pixels)
    assert len(seen) == len(layers) > 5
    for name, values in seen.items():
        rows = values.movedim(1, -1).flatten(0, -2).numpy()
        mean, variance = statistics(result, name)
        # The images come in another order, and every layer of random weights amplifies how sums are rounded.
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-2, atol=2e-3)
        np.testing.assert_allclose(variance, rows.var(0, ddof=1), rtol=1e-2, atol=2e-3)
        assert result.state_dict()[f"{name}.num_batches_tracked"].item() == 1


def test_the_average_of_two_variances_is_another_one(own: sp.Classifier, train: sp.ImageSet) -> None:
    shaken = {
        name: tensor + 0.1 * torch.randn_like(tensor) if tensor.ndim == 4 else tensor
        for name, tensor in own.state_dict().items()
    }
    ends = [reestimate_batch_norm(end, train) for end in (own, own.with_weights(shaken))]
    middle = sp.wise_ft(*ends, alpha=0.5)
    result = reestimate_batch_norm(middle, train)
    first = next(iter(norms(own.network)))
    averaged, renewed = statistics(middle, first)[1], statistics(result, first)[1]
    np.testing.assert_allclose(averaged, sum(statistics(end, first)[1] for end in ends) / 2, rtol=1e-5)
    assert np.abs(renewed / averaged - 1).max() > 0.1
    assert (logits_of_noise(middle) - logits_of_noise(result)).abs().max() > 1e-3


def logits_of_noise(classifier: sp.Classifier) -> Tensor:
    size = classifier.preprocessing.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return classifier.network(images)


def test_only_statistics_change_and_only_in_the_copy(own: sp.Classifier, train: sp.ImageSet) -> None:
    before, state = weight_bytes(own), torch.random.get_rng_state()
    result = reestimate_batch_norm(own, train, batch_size=6)
    assert weight_bytes(own) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    after = weight_bytes(result)
    saved = {name for name in before if before[name] == after[name]}
    assert {name for name in before if "running" not in name and "tracked" not in name} <= saved
    assert not any(module.training for module in [*own.network.modules(), *result.network.modules()])
    momenta = {getattr(layer, "momentum", None) for model in (own, result) for layer in norms(model.network).values()}
    assert momenta == {0.1}


def test_a_second_time_and_a_broken_start_change_nothing(own: sp.Classifier, train: sp.ImageSet) -> None:
    once = reestimate_batch_norm(own, train, batch_size=6)
    assert weight_bytes(reestimate_batch_norm(once, train, batch_size=6)) == weight_bytes(once)
    broken = {
        name: torch.full_like(tensor, torch.nan) if "running" in name else tensor
        for name, tensor in own.state_dict().items()
    }
    assert weight_bytes(reestimate_batch_norm(own.with_weights(broken), train, batch_size=6)) == weight_bytes(once)


def test_it_says_what_was_done(tiny: sp.models.Clip, own: sp.Classifier, train: sp.ImageSet, tmp_path: Path) -> None:
    parents = ({"role": "member", "fingerprint": "f", "source": "s"},)
    settings = replace(own, alpha=0.25, parents=parents, training={"seed": 3})
    result = reestimate_batch_norm(settings, train, batch_size=7, seed=5)
    assert (result.alpha, result.parents, result.head) == (0.25, parents, "own")
    note = {"set": train.name, "images": 18, "batch_size": 6, "seed": 5}
    assert result.training == {"seed": 3, "batch_norm": note}
    assert settings.training == {"seed": 3}
    assert sp.load_classifier(sp.save_classifier(result, tmp_path)).training == result.training


@pytest.mark.parametrize(
    ("count", "batch_size", "size", "used"),
    [(24, 256, 24, 24), (24, 24, 24, 24), (24, 7, 6, 24), (25, 24, 12, 24), (5, 2, 2, 4), (3, 2, 2, 2), (2, 2, 2, 2)],
)
def test_batches_are_equally_large_and_never_of_one(count: int, batch_size: int, size: int, used: int) -> None:
    # Batch norm behind the pooling refuses a batch of one image.
    classifier = pooled_classifier(nn.BatchNorm1d(3))
    images = plain(count)
    read = images.read
    seen: list[int] = []

    def watched(i: int) -> NDArray[np.uint8]:
        seen.append(i)
        return read(i)

    result = reestimate_batch_norm(classifier, replace(images, read=watched), batch_size=batch_size)
    assert result.training["batch_norm"]["batch_size"] == size
    assert result.training["batch_norm"]["images"] == used == len(seen) == len(set(seen))
    assert result.state_dict()["encoder.2.num_batches_tracked"].item() == used // size
    rows = np.stack([read(i)[0, 0] for i in seen]) / 255
    rows = (rows - classifier.preprocessing.mean) / classifier.preprocessing.std
    np.testing.assert_allclose(statistics(result, "encoder.2")[0], rows.mean(0), rtol=1e-4, atol=1e-5)


def test_batches_mix_the_classes() -> None:
    # In the folders' order each batch would be of one colour, without any variance.
    images = plain(24)
    whole = statistics(reestimate_batch_norm(pooled_classifier(nn.BatchNorm1d(3)), images), "encoder.2")[1]
    parts = statistics(reestimate_batch_norm(pooled_classifier(nn.BatchNorm1d(3)), images, batch_size=8), "encoder.2")[
        1
    ]
    assert (parts > 0.5 * whole).all()


def test_the_seed_decides_the_batches() -> None:
    images, classifier = plain(24), pooled_classifier(nn.BatchNorm1d(3))
    first, again, other = (reestimate_batch_norm(classifier, images, batch_size=8, seed=s) for s in (0, 0, 1))
    assert weight_bytes(first) == weight_bytes(again)
    assert weight_bytes(first) != weight_bytes(other)


class DroppingNorm(nn.BatchNorm1d):
    """Batch norm with dropout inside, as timm's has."""

    def __init__(self) -> None:
        super().__init__(3)
        self.drop = nn.Dropout(0.9)

    def forward(self, rows: Tensor) -> Tensor:
        return self.drop(super().forward(rows))  # type: ignore[no-any-return]


def test_dropout_stays_off() -> None:
    images = plain(24)
    expected = reestimate_batch_norm(pooled_classifier(nn.BatchNorm1d(3), nn.BatchNorm1d(3)), images)
    dropping = reestimate_batch_norm(
        pooled_classifier(DroppingNorm(), nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3))), images
    )
    for mine, theirs in (("encoder.2", "encoder.2"), ("encoder.3.1", "encoder.3")):
        np.testing.assert_array_equal(statistics(dropping, mine), statistics(expected, theirs))


def test_networks_without_running_statistics_are_told_apart(tiny: sp.models.Clip, own: sp.Classifier) -> None:
    assert has_batch_norm(own)
    assert has_batch_norm(pooled_classifier(nn.BatchNorm1d(3)))
    without = [
        sp.zero_shot_classifier(tiny, CLASSES),
        sp.own_head_classifier(sp.load_encoder("timm:test_vit")),
        pooled_classifier(nn.GroupNorm(1, 3)),
        pooled_classifier(nn.BatchNorm1d(3, track_running_stats=False)),
    ]
    for classifier in without:
        assert not has_batch_norm(classifier)
        with pytest.raises(sp.InputError, match="cannot be re-estimated for .*no such layer(.|\n)*Leave it out"):
            reestimate_batch_norm(classifier, plain(6))


def test_too_few_images_are_refused(own: sp.Classifier) -> None:
    with pytest.raises(sp.InputError, match="images to estimate batch norm on is 1; it must be at least 2"):
        reestimate_batch_norm(own, plain(24).subset([0]))
    with pytest.raises(sp.InputError, match="batch_size is 1; it must be at least 2"):
        reestimate_batch_norm(own, plain(24), batch_size=1)


def few_sets(folders: Path) -> sp.ShiftSuite:
    reference = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = sp.own_suite(reference, {"sketch": {"data": f"folder:{folders}/sketch"}})
    return suite.relabelled(sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))


def kept_by(logits: dict[tuple[float, str], list[NDArray[np.float32]]]) -> Callable[[float, str], Any]:
    @contextlib.contextmanager
    def keep(alpha: float, name: str) -> Iterator[Callable[[NDArray[np.float32]], None]]:
        yield logits.setdefault((alpha, name), []).append

    return keep


@pytest.mark.parametrize("one_encoder", [False, True])
def test_a_path_re_estimates_every_ensemble_and_leaves_the_ends(folders: Path, one_encoder: bool) -> None:
    suite = few_sets(folders)
    ends = [convolution_classifier(suite.classes, seed) for seed in (0, 1)]
    if one_encoder:
        encoder = {name: entry for name, entry in ends[0].state_dict().items() if name.startswith("encoder.")}
        ends[1] = ends[1].with_weights({**ends[1].state_dict(), **encoder})
    logits: dict[tuple[float, str], list[NDArray[np.float32]]] = {}
    images = suite.reference.train
    sp.sweep_alpha(*ends, suite, [0, 0.3, 1], device="cpu", keep=kept_by(logits), batch_norm_images=images)
    middle = reestimate_batch_norm(sp.wise_ft(*ends, 0.3), images, device="cpu")
    assert weight_bytes(middle) != weight_bytes(sp.wise_ft(*ends, 0.3))
    for alpha, classifier in ((0, ends[0]), (0.3, middle), (1, ends[1])):
        expected = sp.predict(classifier, suite.test_sets["sketch"], device="cpu").logits
        np.testing.assert_array_equal(np.concatenate(logits[alpha, "sketch"]), expected)
        on_path = ensemble_on_path(*ends, alpha, device="cpu", batch_norm_images=images)
        assert weight_bytes(on_path) == weight_bytes(classifier)
    assert ensemble_on_path(*ends, 0.3, batch_norm_images=images).training["batch_norm"]["images"] == len(images)
    assert weight_bytes(ensemble_on_path(*ends, 0.3)) == weight_bytes(sp.wise_ft(*ends, 0.3))


def test_a_resumed_path_re_estimates_only_what_it_measures(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = few_sets(folders)
    ends = [convolution_classifier(suite.classes, seed) for seed in (0, 1)]
    estimated: list[float | None] = []

    def watched(classifier: sp.Classifier, *args: Any, **options: Any) -> sp.Classifier:
        estimated.append(classifier.alpha)
        return reestimate_batch_norm(classifier, *args, **options)

    def known(alpha: float, name: str) -> NDArray[np.bool_] | None:
        return None if (alpha, name) == (0.6, "sketch") else np.ones(len(path_sets(suite)[name]), bool)

    monkeypatch.setattr("shiftproof.ensembling.interpolation.reestimate_batch_norm", watched)
    sp.sweep_alpha(*ends, suite, [0, 0.3, 0.6, 1], known=known, batch_norm_images=suite.reference.train)
    assert estimated == [0.6]


def test_a_path_without_averaged_batch_norm_says_so(folders: Path, tiny: sp.models.Clip) -> None:
    suite = few_sets(folders)
    images = suite.reference.train
    own = convolution_classifier(suite.classes)
    with pytest.raises(sp.InputError, match="in the space 'outputs' no weights are averaged. Interpolate the weights"):
        sp.sweep_alpha(own, own, suite, 3, space="outputs", batch_norm_images=images)
    zero = sp.zero_shot_classifier(tiny, suite.classes)
    with pytest.raises(sp.InputError, match="cannot be re-estimated for tiny"):
        sp.sweep_alpha(zero, zero, suite, 3, batch_norm_images=images)


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small CLIP with a ResNet tower as zero-shot classifier, and one that stands for it fine-tuned."""
    root = tmp_path_factory.mktemp("resnets")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"]))
    (root / "clip").mkdir()
    save_file(model.state_dict(), root / "clip" / "open_clip_model.safetensors")
    (root / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    classes = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
    zero = sp.zero_shot_classifier(sp.load_clip(f"local-dir:{root / 'clip'}"), classes)
    moved = {name: tensor * 1.3 if tensor.is_floating_point() else tensor for name, tensor in zero.state_dict().items()}
    return sp.save_classifier(zero, root / "zero"), sp.save_classifier(zero.with_weights(moved), root / "tuned")


@pytest.mark.slow
def test_a_sweep_scores_averaged_and_measured_statistics(
    tmp_path: Path, folders: Path, resnets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data = ["--reference", f"folder:{folders}/train", "--test", f"folder:{folders}/test"]
    arguments = ["sweep", *map(str, resnets), *data, "--alphas", "0,0.5,1", "--out", str(tmp_path / "sweep")]
    monkeypatch.setattr("sys.argv", ["shiftproof", *arguments, "--reestimate-batch-norm"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "statistics averaged" in shown
    assert "statistics re-estimated" in shown
    lines = [json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()]
    assert [(line["model"], line["alpha"]) for line in lines] == [
        ("statistics averaged", 0.5),
        ("statistics re-estimated", 0.5),
    ]
    averaged, renewed = (sp.load_classifier(tmp_path / "sweep" / name) for name in ("ensemble", "ensemble_batch_norm"))
    suite = sp.own_suite({"train": f"folder:{folders}/train", "test": f"folder:{folders}/test"}, {})
    want = reestimate_batch_norm(averaged, suite.relabelled(averaged.classes).reference.train)
    assert sp.models.fingerprint(renewed) == sp.models.fingerprint(want) != sp.models.fingerprint(averaged)


def test_a_sweep_of_networks_without_batch_norm_says_so(
    tmp_path: Path, folders: Path, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    sp.save_classifier(zero, tmp_path / "zero")
    data = ["--reference", f"folder:{folders}/train", "--test", f"folder:{folders}/test"]
    ends = [str(tmp_path / "zero")] * 2
    monkeypatch.setattr(
        "sys.argv",
        ["shiftproof", "sweep", *ends, *data, "--out", str(tmp_path / "sweep"), "--reestimate-batch-norm"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "cannot be re-estimated for tiny" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
