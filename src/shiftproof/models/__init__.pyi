"""Pretrained encoders, the classifiers built from them, and the directories that hold a classifier."""

from .classifier import Classifier, Network, Task, own_head_classifier
from .clip import Clip, load_clip
from .devices import resolve_device
from .directories import load_classifier, save_classifier
from .encoders import Encoder, load_encoder, own_class_space
from .identity import fingerprint
from .prompts import prompt_templates
from .zero_shot import zero_shot_classifier

__all__ = [
    "Classifier",
    "Clip",
    "Encoder",
    "Network",
    "Task",
    "fingerprint",
    "load_classifier",
    "load_clip",
    "load_encoder",
    "own_class_space",
    "own_head_classifier",
    "prompt_templates",
    "resolve_device",
    "save_classifier",
    "zero_shot_classifier",
]
