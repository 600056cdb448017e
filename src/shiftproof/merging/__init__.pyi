"""Weight arithmetic streamed over checkpoint files of any size."""

from .files import merge_files
from .methods import MergeSettings

__all__ = [
    "MergeSettings",
    "merge_files",
]
