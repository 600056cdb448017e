"""Many runs side by side on Ray, and how far their results spread."""

from .file import StudyFile
from .study import run_study

__all__ = [
    "StudyFile",
    "run_study",
]
