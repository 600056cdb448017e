"""Which keys of a run file the commands use, and the keys by which study files are known."""

from __future__ import annotations

import pytest

import shiftproof as sp
from shiftproof.runs.keys import COMMAND_KEYS, STUDY_KEYS, require_used
from shiftproof.studies.file import StudyFile


def test_the_keys_of_both_kinds_of_files_are_those_of_their_settings() -> None:
    assert set(STUDY_KEYS) == set(StudyFile.model_fields)
    assert not set(STUDY_KEYS) & set(sp.RunFile.model_fields)
    used = {key.partition(".")[0] for keys in COMMAND_KEYS.values() for key in keys}
    assert used == set(sp.RunFile.model_fields)


def test_a_section_is_used_where_some_of_its_keys_are() -> None:
    require_used("sweep", ["finetune.shots=3", "finetune={shots: 3}", "evaluation.precision=float32"])
    require_used("zeroshot", ["suite.reference.test=folder:x"])
    with pytest.raises(sp.InputError, match="'finetune.lr', which belongs to 'run', 'demo', 'finetune'"):
        require_used("sweep", ["alphas=3", "finetune.lr=1"])
