"""Mixing on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.mixings import DTYPES, seeded
from torch import Generator

from shiftproof.mixing.named import MIXINGS

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_what_the_cpu_gives(name: str, dtype: torch.dtype) -> None:
    images = (200 * torch.rand(5, 3, 20, 30, generator=seeded(0))).to(dtype)
    mixing = replace(MIXINGS[name], num_classes=5)
    expected, expected_targets = mixing(images, torch.arange(5), generator=seeded(1))
    result, targets = mixing(images.cuda(), torch.arange(5).cuda(), generator=seeded(1))
    assert (result.device.type, targets.device.type) == ("cuda", "cuda")
    tolerance = 1 if dtype == torch.uint8 else 1000 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.cpu().double(), expected.double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(targets.cpu(), expected_targets)
    mixing(images.cuda(), torch.arange(5).cuda(), generator=Generator("cuda").manual_seed(0))
