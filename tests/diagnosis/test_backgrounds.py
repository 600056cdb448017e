"""Objects and backgrounds put together anew: compositions against twins, rigged classifiers, the gap."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.diagnosis.backgrounds import (
    BACKGROUND_VARIANTS,
    NO_PARTNER,
    background_sets,
    draw_partners,
    measure_backgrounds,
    place_object,
    tiled_background,
)
from shiftproof.evaluation.intervals import bootstrap_interval
from shiftproof.models.classifier import Network
from shiftproof.records.accuracy import GroupRecord
from shiftproof.records.backgrounds import BackgroundStudy
from shiftproof.records.codec import document, from_json

Pixels = NDArray[np.uint8]
CLASSES = sp.ClassSpace.from_ids(["red", "green", "blue"])


@st.composite
def scenes(draw: st.DrawFn, largest: int = 8) -> tuple[Pixels, Pixels]:
    """Random pixels and a mask with some clear, soft and full coverage."""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    levels = random.choice([0, 0, 0, 1, 90, 255, 255], (height, width))
    part = np.zeros((height, width), dtype=bool)
    top, left = random.integers(height), random.integers(width)
    part[top : top + random.integers(1, height + 1), left : left + random.integers(1, width + 1)] = True
    mask = np.where(part, levels, 0).astype(np.uint8)
    assume(mask.any())
    return random.integers(0, 256, (height, width, 3)).astype(np.uint8), mask


def tiled_twin(pixels: Pixels, mask: Pixels) -> list[list[list[int]]]:
    """Pixel by pixel: inside the object's box the strip repeats from the image's corner."""
    height, width = mask.shape
    covered = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
    top, bottom = min(y for y, _ in covered), max(y for y, _ in covered)
    left, right = min(x for _, x in covered), max(x for _, x in covered)
    strips = {  # (first row, first column, rows, columns)
        "below": (bottom + 1, 0, height - 1 - bottom, width),
        "above": (0, 0, top, width),
        "right": (0, right + 1, height, width - 1 - right),
        "left": (0, 0, height, left),
    }
    y0, x0, rows, columns = max(strips.values(), key=lambda strip: strip[2] * strip[3])
    result = pixels.tolist()
    outside = [pixels[y, x].tolist() for y in range(height) for x in range(width) if not mask[y, x]]
    for y in range(top, bottom + 1):
        for x in range(left, right + 1):
            if rows * columns:
                result[y][x] = pixels[y0 + y % rows, x0 + x % columns].tolist()
            else:
                sums = [sum(pixel[c] for pixel in outside) for c in range(3)]
                result[y][x] = [floor(Fraction(s, len(outside)) + Fraction(1, 2)) if outside else 0 for s in sums]
    return result


# Composition


@given(scene=scenes())
def test_the_box_is_filled_with_the_largest_strip_beside_it(scene: tuple[Pixels, Pixels]) -> None:
    pixels, mask = scene
    original = pixels.copy()
    result = tiled_background(pixels, mask)
    assert result.dtype == np.uint8
    assert result.tolist() == tiled_twin(pixels, mask)
    assert np.array_equal(pixels, original)


@given(scene=scenes(), seed=st.integers(0, 1000))
def test_the_background_knows_nothing_of_the_objects_colours(scene: tuple[Pixels, Pixels], seed: int) -> None:
    pixels, mask = scene
    recoloured = pixels.copy()
    recoloured[mask > 0] = np.random.default_rng(seed).integers(0, 256, (int((mask > 0).sum()), 3))
    assert np.array_equal(tiled_background(pixels, mask), tiled_background(recoloured, mask))


@given(scene=scenes())
def test_the_background_knows_the_objects_box_and_not_its_shape(scene: tuple[Pixels, Pixels]) -> None:
    pixels, mask = scene
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    whole = np.zeros_like(mask)
    whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 255
    assume(not whole.all())
    assert np.array_equal(tiled_background(pixels, mask), tiled_background(pixels, whole))


@given(scene=scenes(), seed=st.integers(0, 1000))
def test_an_object_is_placed_pixel_by_pixel(scene: tuple[Pixels, Pixels], seed: int) -> None:
    pixels, mask = scene
    background = np.random.default_rng(seed).integers(0, 256, pixels.shape).astype(np.uint8)
    result = place_object(pixels, mask, background)
    assert np.array_equal(result[mask == 255], pixels[mask == 255])
    assert np.array_equal(result[mask == 0], background[mask == 0])
    clear = [(y, x) for y, x in np.ndindex(mask.shape) if not mask[y, x]]
    for y, x in np.ndindex(mask.shape):
        share = Fraction(255 - int(mask[y, x]), 255)
        nearest = min(((y - v) ** 2 + (x - u) ** 2 for v, u in clear), default=None)
        behind = [pixels[v, u].tolist() for v, u in clear if (y - v) ** 2 + (x - u) ** 2 == nearest]
        possible = [
            [
                min(max(floor(p + share * (n - b) + Fraction(1, 2)), 0), 255)
                for p, n, b in zip(pixels[y, x].tolist(), background[y, x].tolist(), old, strict=True)
            ]
            for old in behind or [pixels[y, x].tolist()]
        ]
        assert result[y, x].tolist() in possible


def test_a_thin_soft_line_is_moved_exactly_from_one_plain_background_to_another() -> None:
    cover = np.zeros((12, 12), dtype=np.uint8)
    cover[2:10, 5], cover[2:10, 6] = 153, 51  # a dark line that covers no pixel whole
    share = cover[..., None] / 255

    def drawn(background: list[int]) -> Pixels:
        return (share * [20, 30, 40] + (1 - share) * background).round().astype(np.uint8)

    new = np.full((12, 12, 3), [10, 200, 120], dtype=np.uint8)
    result = place_object(drawn([255, 255, 255]), cover, new)
    assert np.abs(result.astype(int) - drawn([10, 200, 120])).max() <= 1
    white = np.full((12, 12, 3), 255, dtype=np.uint8)
    assert np.array_equal(place_object(drawn([255, 255, 255]), cover, white), drawn([255, 255, 255]))


def test_a_background_of_another_size_is_resized() -> None:
    random = np.random.default_rng(0)
    pixels, background = (random.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((6, 9), (20, 11)))
    mask = np.zeros((6, 9), dtype=np.uint8)
    mask[2:4, 3:5] = 255
    expected = np.array(Image.fromarray(background).resize((9, 6), Image.Resampling.BICUBIC))
    expected[2:4, 3:5] = pixels[2:4, 3:5]
    assert np.array_equal(place_object(pixels, mask, background), expected)


def test_pixels_without_object_or_of_another_size_are_refused() -> None:
    pixels, mask = np.zeros((4, 5, 3), dtype=np.uint8), np.full((5, 4), 255, dtype=np.uint8)
    for call in (lambda: tiled_background(pixels, mask), lambda: place_object(pixels, mask, pixels)):
        with pytest.raises(sp.InputError, match=r"\(4, 5, 3\) and \(5, 4\)"):
            call()
    with pytest.raises(sp.InputError, match="shows no object"):
        tiled_background(pixels, np.zeros((4, 5), dtype=np.uint8))


# Partners


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=30), seed=st.integers(0, 1000))
def test_partners_are_others_of_the_class_and_of_other_classes(labels: list[int], seed: int) -> None:
    counts = Counter(labels)
    assume(len(counts) > 1 and max(counts.values()) > 1)
    result = draw_partners(np.array(labels), seed=seed)
    again = draw_partners(np.array(labels), seed=seed)
    assert result.same.tolist() == again.same.tolist()
    assert result.other.tolist() == again.other.tolist()
    for i, label in enumerate(labels):
        if counts[label] == 1:
            assert result.same[i] == NO_PARTNER
        else:
            assert result.same[i] != i
            assert labels[result.same[i]] == label
        assert labels[result.other[i]] != label


def test_every_partner_has_its_chance_and_large_classes_no_more_of_it() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2])
    drawn = [draw_partners(labels, seed=seed) for seed in range(2000)]
    same = Counter(int(partners.same[1]) for partners in drawn)
    assert {i: round(count / 2000, 1) for i, count in same.items()} == {0: 0.5, 2: 0.5}
    other = Counter(int(partners.other[0]) for partners in drawn)
    assert other[3] / 2000 == pytest.approx(0.5, abs=0.04)
    assert all(other[i] / 2000 == pytest.approx(0.125, abs=0.03) for i in range(4, 8))


@pytest.mark.parametrize(
    ("labels", "message"), [([1, 1, 1], r"of 1 class\(es\)"), ([0, 1, 2], "every class has only one image")]
)
def test_labels_that_leave_no_partner_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        draw_partners(np.array(labels))


# Sets


def flags(labels: list[int], backgrounds: list[int], sizes: list[tuple[int, int]] | None = None) -> sp.ImageSet:
    """A square of the label's colour on a background colour of its own choice, with some texture on both."""
    sizes = sizes or [(16, 16)] * len(labels)

    def read(i: int) -> Pixels:
        random = np.random.default_rng(i)
        pixels = random.integers(0, 30, (*sizes[i], 3))
        pixels[..., backgrounds[i]] += 200
        square = random.integers(0, 30, (*sizes[i], 3))
        square[..., labels[i]] += 200
        return np.where(mask(i)[..., None] > 0, square, pixels).astype(np.uint8)

    def mask(i: int) -> Pixels:
        height, width = sizes[i]
        cover = np.zeros(sizes[i], dtype=np.uint8)
        cover[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 255
        return cover

    ids = tuple(f"flag-{i}" for i in range(len(labels)))
    return sp.ImageSet("flags", CLASSES, ids, np.array(labels), read, mask=mask)


def test_the_variants_are_composed_of_the_drawn_partners() -> None:
    sizes = [(16, 16), (12, 20), (24, 9), (16, 12), (8, 8), (30, 30)]
    images = flags([0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], sizes)
    assert images.mask is not None
    partners, result = draw_partners(images.labels, seed=3), background_sets(images, seed=3)
    assert tuple(result) == BACKGROUND_VARIANTS
    backgrounds = [tiled_background(images.read(i), images.mask(i)) for i in range(6)]
    for i in range(6):
        pixels, mask = images.read(i), images.mask(i)
        expected = {
            "original": pixels,
            "only-foreground": np.where(mask[..., None] == 255, pixels, 0),
            "only-background": backgrounds[i],
            "mixed-same": place_object(pixels, mask, backgrounds[partners.same[i]]),
            "mixed-random": place_object(pixels, mask, backgrounds[partners.other[i]]),
        }
        for variant, composed in expected.items():
            assert np.array_equal(result[variant].read(i), composed), (variant, i)
    for variant, data in result.items():
        assert (data.name, data.ids, data.labels.tolist()) == (variant, images.ids, images.labels.tolist())
    again, other = background_sets(images, seed=3), background_sets(images, seed=4)
    assert all(np.array_equal(result["mixed-random"].read(i), again["mixed-random"].read(i)) for i in range(6))
    assert not all(np.array_equal(result["mixed-random"].read(i), other["mixed-random"].read(i)) for i in range(6))


def test_nothing_is_read_before_it_is_asked_for() -> None:
    settings: list[int] = []
    images = flags([0, 0, 1, 1], [0, 1, 0, 1])

    def read(i: int) -> Pixels:
        settings.append(i)
        return images.read(i)

    result = background_sets(replace(images, read=read))
    assert settings == []
    result["mixed-same"].read(1)
    assert sorted(settings) == [0, 1]


def test_the_only_image_of_a_class_is_left_out_of_mixed_same() -> None:
    images = flags([0, 1, 1, 2, 1], [0, 1, 2, 0, 1])
    assert images.mask is not None
    with pytest.warns(UserWarning, match="2 of 5 samples of flags are the only one"):
        result = background_sets(images, seed=1)
    assert {variant: len(data) for variant, data in result.items()} == {
        **dict.fromkeys(BACKGROUND_VARIANTS, 5),
        "mixed-same": 3,
    }
    partners = draw_partners(images.labels, seed=1)
    assert result["mixed-same"].ids == ("flag-1", "flag-2", "flag-4")
    for place, i in enumerate((1, 2, 4)):
        partner = int(partners.same[i])
        behind = tiled_background(images.read(partner), images.mask(partner))
        expected = place_object(images.read(i), images.mask(i), behind)
        assert np.array_equal(result["mixed-same"].read(place), expected)


def test_sets_without_masks_and_images_without_objects_are_refused() -> None:
    images = flags([0, 0, 1], [0, 1, 2])
    with pytest.raises(sp.InputError, match=r"flags has no object masks.*column 'mask'.*with_masks"):
        background_sets(replace(images, mask=None))
    empty = replace(images, mask=lambda i: np.zeros((16, 16), dtype=np.uint8))
    with pytest.warns(UserWarning, match="1 of 3"):
        result = background_sets(empty)
    with pytest.raises(sp.InputError, match="flag-1 of flags: the mask shows no object"):
        result["only-background"].read(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clutter", "sketch"])
def test_emoji_keep_their_object_and_lose_their_background(name: str) -> None:
    images = sp.load_suite("emoji").test_sets[name].subset(range(400, 440))
    assert images.mask is not None
    result = background_sets(images)
    for i in range(40):
        mask = images.mask(i)
        for variant in ("only-foreground", "mixed-same", "mixed-random"):
            assert np.array_equal(result[variant].read(i)[mask == 255], images.read(i)[mask == 255])
        assert not result["only-foreground"].read(i)[mask == 0].any()
        inside = (slice(None), np.flatnonzero(mask.any(0)))
        assert not np.array_equal(result["only-background"].read(i)[inside], images.read(i)[inside])


# Studies


class Looking(nn.Module):
    """The mean colour of what a classifier looks at: the border's pixels, or the middle's."""

    def __init__(self, at: str) -> None:
        super().__init__()
        where = torch.zeros(16, 16)
        if at == "border":
            where[[0, -1]] = where[:, [0, -1]] = 1
        else:
            where[6:10, 6:10] = 1
        self.register_buffer("where", where / where.sum())

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.where).sum((2, 3))  # type: ignore[operator]


def looking(at: str, resize_mode: str = "squash") -> sp.Classifier:
    head = nn.Linear(3, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3))
        head.bias.zero_()
    return sp.Classifier(
        network=Network(Looking(at), head).eval(),
        classes=CLASSES,
        preprocessing=Preprocessing(size=16, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=resize_mode),
        architecture={"name": at},
        source="rigged",
        prompts=("a {}.",),
        head="trained",
        logit_scale=1.0,
    )


LABELS = [0] * 8 + [1] * 6 + [2] * 5
BEHIND = [0, 0, 0, 0, 0, 1, 2, 0, 1, 1, 1, 1, 2, 1, 2, 2, 2, 0, 2]  # mostly the label's own


def test_who_looks_at_the_border_has_a_gap_and_who_looks_at_the_object_has_none() -> None:
    images = flags(LABELS, BEHIND)
    measured = measure_backgrounds({"border": looking("border"), "object": looking("object")}, images, seed=5)
    assert (measured.set, measured.chance, measured.seed, measured.level) == ("flags", 1 / 3, 5, 0.95)
    labels, behind, partners = np.array(LABELS), np.array(BEHIND), draw_partners(np.array(LABELS), seed=5)
    right = {
        "original": behind == labels,
        "only-background": behind == labels,
        "mixed-same": behind[partners.same] == labels,
        "mixed-random": behind[partners.other] == labels,
    }
    border = measured.models["border"]
    for variant, correct in right.items():
        interval = sp.evaluation.accuracy_interval(int(correct.sum()), 19)
        assert border.variants[variant] == GroupRecord(correct.mean(), interval, 19), variant
    gap = right["mixed-same"].astype(float) - right["mixed-random"]
    assert (border.gap, border.gap_n) == (gap.mean(), 19)
    assert border.gap_interval == bootstrap_interval(gap, LABELS)
    assert border.gap > 0.4
    rigged = measured.models["object"]
    for variant in ("original", "only-foreground", "mixed-same", "mixed-random"):
        assert rigged.variants[variant].accuracy == 1
    assert (rigged.gap, rigged.gap_interval) == (0, (0, 0))
    assert border.variants["only-foreground"].accuracy == 8 / 19  # black: the first class


@pytest.mark.slow
def test_a_study_is_repeatable_and_no_classifier_moves_another() -> None:
    images = flags(LABELS, BEHIND, [(16 + i, 30 - i) for i in range(19)])
    pair = {"border": looking("border"), "cropped": looking("border", "shortest")}
    measured = measure_backgrounds(pair, images)
    assert measure_backgrounds(pair, images) == measured
    for name, classifier in pair.items():
        assert measure_backgrounds({name: classifier}, images).models[name] == measured.models[name]
    assert measure_backgrounds(pair, images, seed=1).models != measured.models


def test_a_sample_without_partner_is_left_out_of_the_gap() -> None:
    labels, behind = [1, 0, 0, 2, 2, 2], [1, 0, 0, 2, 2, 2]
    with pytest.warns(UserWarning, match="1 of 6"):
        measured = measure_backgrounds({"border": looking("border")}, flags(labels, behind)).models["border"]
    assert {variant: part.n for variant, part in measured.variants.items()} == {
        **dict.fromkeys(BACKGROUND_VARIANTS, 6),
        "mixed-same": 5,
    }
    assert (measured.gap, measured.gap_n, measured.gap_interval) == (1, 5, (1, 1))


def test_a_study_comes_back_from_json() -> None:
    measured = measure_backgrounds({"border": looking("border")}, flags(LABELS, BEHIND))
    text = json.dumps(document(measured), allow_nan=False)
    assert from_json(BackgroundStudy, json.loads(text)) == measured
    assert set(json.loads(text)["models"]["border"]) == {"variants", "gap", "gap_interval", "gap_n"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure_backgrounds({}, flags([0, 0, 1, 1], [0, 1, 0, 1])), "`classifiers` is empty"),
        (lambda: measure_backgrounds({"a": looking("border")}, flags([0, 0, 1], [0, 1, 2])), "two such classes"),
        (
            lambda: measure_backgrounds(
                {"a": replace(looking("border"), classes=sp.ClassSpace.from_ids(["x", "y", "z"]))},
                flags([0, 0, 1, 1], [0, 1, 0, 1]),
            ),
            "another class space",
        ),
    ],
)
def test_a_study_that_cannot_be_made_says_why(call: Callable[[], object], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(sp.InputError, match=message):
            call()


@pytest.mark.slow
def test_the_zero_shot_model_has_no_gap_on_white(tiny: sp.models.Clip) -> None:
    whole = sp.load_data("emoji")
    images = whole.subset(range(800, 840))
    images = images.relabelled(sp.ClassSpace.from_ids(sorted({whole.classes.ids[k] for k in images.labels})))
    mixed = background_sets(images)["mixed-random"]
    assert all(np.array_equal(mixed.read(i), images.read(i)) for i in range(40))
    measured = measure_backgrounds({"zero_shot": sp.zero_shot_classifier(tiny, images.classes)}, images)
    record = measured.models["zero_shot"]
    assert record.gap == 0
    assert record.variants["mixed-same"] == record.variants["original"]
    assert record.variants["original"].accuracy > 0.8
    low, high = record.variants["only-background"].interval
    assert low <= measured.chance <= high  # white says nothing


# The interval of a mean


def bootstrap_twin(
    values: list[float], clusters: list[str] | None, level: float, draws: int, seed: int
) -> tuple[float, float]:
    """One resample after the other, and quantiles that fall on a resample's mean."""
    groups: dict[object, list[float]] = {}
    for i, value in enumerate(values):
        groups.setdefault(i if clusters is None else clusters[i], []).append(value)
    members = [groups[name] for name in sorted(groups)]  # type: ignore[type-var]
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        drawn = [value for _ in members for value in members[generator.integers(len(members))]]
        means.append(sum(drawn) / len(drawn))
    place = (1 - level) / 2 * (draws - 1)
    assert place == int(place)
    return sorted(means)[int(place)], sorted(means)[-1 - int(place)]


@given(
    pairs=st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(["a", "b", "cc", "d", "e"])), min_size=2),
    clustered=st.booleans(),
    level=st.sampled_from([0.5, 0.75]),
    seed=st.integers(0, 1000),
)
def test_the_bootstrap_equals_its_slow_twin(
    pairs: list[tuple[int, str]], clustered: bool, level: float, seed: int
) -> None:
    values, clusters = [float(value) for value, _ in pairs], [name for _, name in pairs] if clustered else None
    assume(clusters is None or len(set(clusters)) > 1)
    result = bootstrap_interval(values, clusters, level=level, draws=41, seed=seed)
    assert result == bootstrap_twin(values, clusters, level, 41, seed)


def test_the_bootstrap_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=37)
    whole = bootstrap_interval(values, np.arange(37) // 3)
    for at_once in (1, 13, 130):
        monkeypatch.setattr("shiftproof.evaluation.intervals._DRAWS_AT_ONCE", at_once)
        assert bootstrap_interval(values, np.arange(37) // 3) == whole
    assert bootstrap_interval(values, np.arange(37) // 3, seed=1) != whole


def test_the_bootstrap_covers_the_truth_as_often_as_it_says_if_clusters_are_told() -> None:
    random = np.random.default_rng(1)
    covered = {True: 0, False: 0}
    for _ in range(400):
        sizes = random.integers(2, 9, 50)
        clusters = np.repeat(np.arange(50), sizes)
        values = 0.3 + random.normal(size=50)[clusters] + random.normal(size=len(clusters))
        for reported in covered:
            low, high = bootstrap_interval(values, clusters if reported else None, draws=300)
            covered[reported] += low <= 0.3 <= high
    assert 0.91 <= covered[True] / 400 <= 0.98
    assert covered[False] / 400 < 0.8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "form 0 cluster"),
        (lambda: bootstrap_interval([1.0]), "form 1 cluster"),
        (lambda: bootstrap_interval([1.0, 2.0], ["a", "a"]), "form 1 cluster"),
        (lambda: bootstrap_interval([1.0, 2.0], ["a"]), "2 and 1 entries"),
        (lambda: bootstrap_interval([[1.0, 2.0]]), r"\(1, 2\)"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "value 1 is not finite"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95), "level is 95"),
        (lambda: bootstrap_interval([1.0, 2.0], draws=0), "draws is 0"),
    ],
)
def test_values_without_an_interval_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        call()
