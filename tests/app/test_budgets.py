"""What a stop may take: known, and the sum of its steps."""

from pathlib import Path

from clarad.app.budgets import CANCEL_BUDGET, CLOSE_BUDGET, END_BUDGET, HOOKS_BUDGET, stop_budget
from clarad.config import Settings
from clarad.nurseries.gateway import LINGER, STOP_HANDSHAKE_TIMEOUT
from clarad.process.shell import GRACE
from clarad.transport.sender import CLOSE_TIMEOUT

SETTINGS = Settings(state_dir=Path("/nowhere"), database_url="sqlite:////nowhere/clarad.db")


def test_it_is_the_sum_of_the_steps() -> None:
    assert CLOSE_BUDGET == STOP_HANDSHAKE_TIMEOUT + CLOSE_TIMEOUT + LINGER
    steps = (SETTINGS.drain_timeout, CANCEL_BUDGET, CLOSE_BUDGET, HOOKS_BUDGET, END_BUDGET)
    assert stop_budget(SETTINGS) == sum(steps) == 73


def test_commands_that_are_told_to_end_have_the_time_to() -> None:
    assert END_BUDGET > GRACE
    assert CANCEL_BUDGET > GRACE
