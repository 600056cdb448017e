"""The preprocessing for other people's scripts gives the same bits as evaluation."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.pictures import DECODED_HERE
from torchvision.datasets import ImageFolder

import shiftproof as sp
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import picture_set
from shiftproof.data.transforms import ImageTransform


@pytest.mark.parametrize("case", DECODED_HERE, ids=lambda case: f"{case.name}{case.suffix}")
def test_every_kind_of_picture_becomes_the_same_bits(case, tmp_path: Path) -> None:
    path = tmp_path / f"picture{case.suffix}"
    refused = case.write(path) is None
    transform = ImageTransform(Preprocessing(size=5))
    with Image.open(path) as image:
        if refused:
            with pytest.raises(sp.InputError, match="range the file does not state"):
                transform(image)
            return
        made = transform(image)
    classes = sp.ClassSpace.from_ids(["one", "two"])
    images = picture_set("pictures", classes, ["a"], np.array([0]), [path])
    with pytest.warns() if case.conversions else pytest.MonkeyPatch.context():
        (batch,) = evaluation_batches(images, transform.preprocessing, 8)
    assert torch.equal(made, batch[0])
    assert made.dtype == torch.float32


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["shortest", "squash", "longest"]),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from([1.0, 0.875, 1.1]),
    st.integers(0, 99),
)
def test_pixels_of_every_shape_become_the_same_bits(
    height: int, width: int, mode: str, interpolation: str, crop: float, seed: int
) -> None:
    preprocessing = Preprocessing(
        size=9, resize_mode=mode, interpolation=interpolation, crop_share=crop, fill=7, mean=(0.1, 0.2, 0.3)
    )
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    images = sp.data.array_set("a", sp.ClassSpace.from_ids(["one", "two"]), ["a"], np.array([0]), lambda: pixels[None])
    (batch,) = evaluation_batches(images, preprocessing, 1)
    assert torch.equal(ImageTransform(preprocessing)(Image.fromarray(pixels)), batch[0])


def test_a_data_loader_of_torchvision_uses_it(folders: Path, tiny: sp.models.Clip) -> None:
    classifier = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    copied = pickle.loads(pickle.dumps(classifier.preprocess))
    assert len(pickle.dumps(classifier.preprocess)) < 1000  # no weights travel to the workers
    theirs = torch.utils.data.DataLoader(ImageFolder(folders / "test", transform=copied), batch_size=4)
    ours = sp.load_data(f"folder:{folders}/test", classifier.classes)
    logits = torch.cat([classifier.network(images) for images, _ in theirs])
    assert [label for _, labels in theirs for label in labels.tolist()] == ours.labels.tolist()
    assert torch.equal(
        torch.cat([images for images, _ in theirs]),
        torch.cat(list(evaluation_batches(ours, classifier.preprocessing, 8))),
    )
    np.testing.assert_allclose(logits.detach(), sp.predict(classifier, ours).logits, atol=1e-4)


def test_anything_but_a_pillow_image_is_refused() -> None:
    with pytest.raises(sp.InputError, match="`image` is of the type ndarray; it must be a Pillow image"):
        ImageTransform(Preprocessing())(np.zeros((8, 8, 3), np.uint8))
