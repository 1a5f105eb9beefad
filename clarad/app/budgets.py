"""How long a stop may take, step by step: one budget, which the daemon shares with its unit.

The daemon asks systemd for as much as it still has of it, so that TimeoutStopSec= need not know
CLARA_DRAIN_TIMEOUT, and only ends a daemon that hangs.
"""

from typing import Final

from clarad.config import Settings
from clarad.nurseries.gateway import LINGER, STOP_HANDSHAKE_TIMEOUT
from clarad.transport.sender import CLOSE_TIMEOUT

CANCEL_BUDGET: Final = 10.0
"""Seconds from the end of the drain until every cancelled message has ended and is stored."""

CLOSE_BUDGET: Final = STOP_HANDSHAKE_TIMEOUT + CLOSE_TIMEOUT + LINGER
"""Seconds in which every connection ends, those among them that are still shaking hands."""

HOOKS_BUDGET: Final = 10.0
"""Seconds that the last hooks have, those of `gateway:shutdown` among them."""

END_BUDGET: Final = 15.0
"""Seconds in which what is left ends: commands of hooks, sandboxes, the last commit.

Nothing here cuts that short, since each ends by itself; but systemd is asked for no more time.
"""


def stop_budget(settings: Settings) -> float:
    """Return the seconds that a stop takes at most, from the signal to the end of the process."""
    return settings.drain_timeout + CANCEL_BUDGET + CLOSE_BUDGET + HOOKS_BUDGET + END_BUDGET
