"""What tests of hooks and of tasks have in common."""

import pytest

from clarad.automation.runs import retries, run
from clarad.process import shell


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short: before another attempt, before the store is tried again, before SIGKILL."""
    monkeypatch.setattr(run, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(run, "STORE_RETRY", 0.05)
    monkeypatch.setattr(retries, "STORE_RETRY", 0.05)
    monkeypatch.setattr(shell, "GRACE", 0.1)
