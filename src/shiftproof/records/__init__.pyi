"""Result types of every run, study and diagnosis, and the JSON files they are read from and written to."""

from .accuracy import AccuracyRecord, GroupRecord, MeanRecord
from .backgrounds import BackgroundRecord, BackgroundStudy
from .checkups import CheckedSet, Checkup, Finding
from .codec import document, from_json, to_json
from .comparisons import (
    AgreementRecord,
    CkaRecord,
    ConnectivityRecord,
    FollowedRecord,
    LayersRecord,
    LossRecord,
    Measured,
    MovementRecord,
    OverrideRecord,
    PlanePoint,
    PlaneRecord,
)
from .diagnosis import (
    AverageRecord,
    ClassesRecord,
    ConfidenceRecord,
    DiagnosisRecord,
    DifferenceRecord,
    DiversityRecord,
    OtherPathRecord,
    PairRecord,
    RobustnessRecord,
    TemperatureRecord,
)
from .merges import MergeInput, MergeRecord
from .paths import PathPoint, PathRecord
from .pretraining import LossPoint, PretrainRecord
from .rules import RuleRecord, RulesRecord
from .runs import HeldOutRecord, RunRecord
from .studies import SpreadRecord, StudyFailure, StudyMember, StudyRecord
from .windows import MapExample, StrongEdgeStudy, WindowExample, WindowRecord, WindowSummary

__all__ = [
    "AccuracyRecord",
    "AgreementRecord",
    "AverageRecord",
    "BackgroundRecord",
    "BackgroundStudy",
    "CheckedSet",
    "Checkup",
    "CkaRecord",
    "ClassesRecord",
    "ConfidenceRecord",
    "ConnectivityRecord",
    "DiagnosisRecord",
    "DifferenceRecord",
    "DiversityRecord",
    "Finding",
    "FollowedRecord",
    "GroupRecord",
    "HeldOutRecord",
    "LayersRecord",
    "LossPoint",
    "LossRecord",
    "MapExample",
    "MeanRecord",
    "Measured",
    "MergeInput",
    "MergeRecord",
    "MovementRecord",
    "OtherPathRecord",
    "OverrideRecord",
    "PairRecord",
    "PathPoint",
    "PathRecord",
    "PlanePoint",
    "PlaneRecord",
    "PretrainRecord",
    "RobustnessRecord",
    "RuleRecord",
    "RulesRecord",
    "RunRecord",
    "SpreadRecord",
    "StrongEdgeStudy",
    "StudyFailure",
    "StudyMember",
    "StudyRecord",
    "TemperatureRecord",
    "WindowExample",
    "WindowRecord",
    "WindowSummary",
    "document",
    "from_json",
    "to_json",
]
