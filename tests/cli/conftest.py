"""Commands that run in this process, with the settings of a machine where nothing is set."""

import os
from pathlib import Path

import pytest

from tests.daemon_process import OURS


@pytest.fixture
def clean_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset every setting but the state directory, which is the test's own."""
    for name in list(os.environ):
        if name.startswith((*OURS, "STATE_DIRECTORY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLARA_STATE_DIR", f"{tmp_path / 'state'}")
