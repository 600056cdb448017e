"""Turns a finished pretraining run into the shipped model: half-precision weights and the card.

    shiftproof pretrain src/shiftproof/assets/shiftproof-tiny.yaml --out runs/tiny
    python tools/publish_tiny.py runs/tiny

It overwrites ``shiftproof-tiny.safetensors`` and ``shiftproof-tiny.card.json`` in ``src/shiftproof/assets``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from shiftproof.data.captions import EmojiCaptions
from shiftproof.data.emoji.drawings import SPRITES_SHA256, concepts
from shiftproof.models.clip import load_clip
from shiftproof.models.tiny import TINY_CARD, TINY_WEIGHTS
from shiftproof.pretraining.recall import held_out_recall
from shiftproof.storage import read_json, write_json
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

ATTRIBUTION = (
    "Trained on pictures made from OpenMoji (all emojis designed by OpenMoji, the open-source emoji and icon project; "
    "CC BY-SA 4.0) and Noto Emoji (SIL Open Font License 1.1)."
)


def publish(run: Path) -> None:
    """Writes the weights and the card of a pretraining run into the package."""
    tensors = read_state_dict(run / "model" / "open_clip_model.safetensors")
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    write_state_dict(half, TINY_WEIGHTS)
    card = read_json(run / "card.json")
    card["recall"] = held_out_recall(load_clip("tiny"), EmojiCaptions(), seed=card["seed"])
    card |= {
        "model": "tiny",
        "architecture": "open_clip:shiftproof-tiny",
        "parameters": sum(t.numel() for t in tensors.values()),
        "weights": "float16 on disk, float32 in use",
        "run_file": "shiftproof-tiny.yaml",
        "drawings_sha256": SPRITES_SHA256,
        "seen": "colour drawings of every concept, on white, plain and busy backgrounds",
        "withheld_renditions": ["sketch", "painting", "monochrome"],
        "withheld_concepts": [concept.name for concept in concepts() if concept.withheld],
        "recall_on": EmojiCaptions.held_out,
        "attribution": ATTRIBUTION,
    }
    write_json(TINY_CARD, card)
    print(f"{TINY_WEIGHTS.stat().st_size / 1e6:.1f} MB, recall {card['recall']}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/publish_tiny.py RUN, where RUN is the output directory of shiftproof pretrain")
    publish(Path(sys.argv[1]))
