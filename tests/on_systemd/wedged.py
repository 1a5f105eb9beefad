"""`clarad run` that gets stuck when it is told: its loop by SIGUSR1, its store by SIGUSR2.

Tests put it into the place of the package's `clarad`, under the same unit.
"""

import signal
import sys
import time
from typing import NoReturn

sys.path.insert(0, "/usr/lib/clarad")

from sqlalchemy.engine.default import DefaultDialect

from clarad.app import daemon
from clarad.cli import main


def stuck_for_ever(*_: object) -> NoReturn:
    """Be found by this name in a stack."""
    while True:
        time.sleep(1000)


def wedge_the_store(*_: object) -> None:
    """Have the next commit never end."""
    DefaultDialect.do_commit = stuck_for_ever  # type: ignore[method-assign]


vars(daemon)["STORE_PATIENCE"] = 1.0  # a slow disk is given longer
signal.signal(signal.SIGUSR1, stuck_for_ever)
signal.signal(signal.SIGUSR2, wedge_the_store)
sys.exit(main(["run"]))
