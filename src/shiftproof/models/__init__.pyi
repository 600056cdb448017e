"""Pretrained encoders, the classifiers built from them, and the directories that hold a classifier."""

from .classifier import Classifier, Network, Task
from .clip import Clip, load_clip
from .devices import resolve_device
from .directories import load_classifier, save_classifier
from .encoders import Encoder, load_encoder, own_class_space
from .export.card import KnownResults, write_model_card
from .export.exporting import Export, export_classifier
from .export.hub import push_to_hub
from .heads import own_head_classifier
from .identity import fingerprint
from .prompts import prompt_templates
from .zero_shot import zero_shot_classifier

__all__ = [
    "Classifier",
    "Clip",
    "Encoder",
    "Export",
    "KnownResults",
    "Network",
    "Task",
    "export_classifier",
    "fingerprint",
    "load_classifier",
    "load_clip",
    "load_encoder",
    "own_class_space",
    "own_head_classifier",
    "prompt_templates",
    "push_to_hub",
    "resolve_device",
    "save_classifier",
    "write_model_card",
    "zero_shot_classifier",
]
