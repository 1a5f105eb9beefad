"""Logs the output of hooks' and tasks' commands, line by line.

It does so when an attempt has ended, so that the lines of a run stay together, and a flood costs no
more than its last lines. The store has more of the output (`clarad hooks show`).
"""

import logging
from typing import Final

from clarad.automation.runs.subject import Subject
from clarad.log import NOTICE, OUTPUT
from clarad.store import Ending
from clarad.systemd import catalogue

log = logging.getLogger(OUTPUT)

MAX_LINES: Final = 100
"""The last lines of each stream are logged, this many."""

MAX_LINE: Final = 1000
"""The first characters of each line are logged, this many."""


def log_output(subject: Subject, run_id: str, ending: Ending) -> None:
    """Log the lines of an attempt's output, and how much of it is left out."""
    if log.isEnabledFor(logging.INFO):
        _log(subject, run_id, "stdout", ending.stdout, ending.stdout_cut, logging.INFO)
        _log(subject, run_id, "stderr", ending.stderr, ending.stderr_cut, NOTICE)


def _log(subject: Subject, run_id: str, stream: str, text: str, cut: int, level: int) -> None:
    lines = [line for line in text.splitlines() if line.strip()]
    fields = subject.fields(run_id) | {"stream": stream}
    if cut or len(lines) > MAX_LINES:
        left_out = f"{max(0, len(lines) - MAX_LINES)} lines" + (f" and {cut} bytes" if cut else "")
        about = catalogue.OUTPUT_CUT.about(**fields)
        log.log(level, "%s: %s of its %s are left out here", subject, left_out, stream, extra=about)
    for line in lines[-MAX_LINES:]:
        more = len(line) - MAX_LINE
        rest = f" [{more} more characters]" if more > 0 else ""
        # No entry: `journalctl -x` would explain every line.
        log.log(level, "%s: %s%s", subject, line[:MAX_LINE], rest, extra={"fields": fields})
