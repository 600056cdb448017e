"""How OpenMP's threads wait in a command: without spinning, unless the user decides otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# What is read when torch is loaded, and whether that has happened before the policy was set.
CODE = """
import os, sys
from shiftproof.cli import app
app.app = lambda **_: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
app.main()
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE"), ("", "")])
def test_commands_wait_passively_unless_the_user_sets_the_policy(given: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == f"{expected} False\n"
