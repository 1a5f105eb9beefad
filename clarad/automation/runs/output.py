"""What commands of hooks and tasks wrote, line by line, when an attempt has ended.

At its end, and not as it comes: the lines of a run stay together, and `yes` costs no more than its
last lines. More of it is in the store (`clarad hooks show`).
"""

import logging
from typing import Final

from clarad.automation.runs.subject import Subject
from clarad.log import NOTICE, OUTPUT
from clarad.store import Ending
from clarad.systemd import catalogue

log = logging.getLogger(OUTPUT)

MAX_LINES: Final = 100
"""Lines of each stream that are logged: the last ones."""

MAX_LINE: Final = 1000
"""Characters of a line that are logged: the first ones."""


def log_output(what: Subject, run_id: str, ending: Ending) -> None:
    """Log the lines of an attempt, and how much is left out of them."""
    if log.isEnabledFor(logging.INFO):
        _log(what, run_id, "stdout", ending.stdout, ending.stdout_cut, logging.INFO)
        _log(what, run_id, "stderr", ending.stderr, ending.stderr_cut, NOTICE)


def _log(what: Subject, run_id: str, stream: str, text: str, cut: int, level: int) -> None:
    lines = [line for line in text.splitlines() if line.strip()]
    fields = what.fields(run_id) | {"stream": stream}
    if cut or len(lines) > MAX_LINES:
        left_out = f"{max(0, len(lines) - MAX_LINES)} lines" + (f" and {cut} bytes" if cut else "")
        about = catalogue.OUTPUT_CUT.about(**fields)
        log.log(level, "%s: %s of its %s are left out here", what, left_out, stream, extra=about)
    for line in lines[-MAX_LINES:]:
        more = len(line) - MAX_LINE
        rest = f" [{more} more characters]" if more > 0 else ""
        # No entry: `journalctl -x` would explain every line.
        log.log(level, "%s: %s%s", what, line[:MAX_LINE], rest, extra={"fields": fields})
