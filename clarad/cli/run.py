"""`clarad run`: the daemon in the foreground."""

import argparse
import logging
import resource
from enum import IntEnum

from clarad import config
from clarad.cli import fail, innermost
from clarad.systemd import handover

log = logging.getLogger(__name__)


class Exit(IntEnum):
    """Why the daemon has ended, after sysexits.h where it has a name for it."""

    STOPPED = 0
    CANNOT_LISTEN = 69
    FAILED = 70
    NO_SANDBOX = 71
    STORE = 74
    ALREADY_RUNNING = 75
    CONFIG = 78


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Run the daemon in the foreground. SIGTERM and Ctrl-C let running messages finish\n"
        "for CLARA_DRAIN_TIMEOUT seconds; a second one stops at once."
    )
    parser.epilog = (
        "exit status:\n"
        "  0   stopped when told to\n"
        "  69  the address cannot be listened on\n"
        "  70  a part of the daemon kept failing; the log says which\n"
        "  71  there are no sandboxes, and SANDBOX_MODE wants them\n"
        "  74  the database cannot be used\n"
        "  75  the state directory is another daemon's, or cannot be written\n"
        "  78  a setting, a hook or a task is wrong; `clarad check` says more"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run until stopped; every reason not to is one line."""
    handed = handover.take()
    try:
        settings, warnings = config.load()
    except config.ConfigError as error:
        fail(*error.problems)
        return Exit.CONFIG
    from clarad import daemon
    from clarad.automation import definitions
    from clarad.instance import AlreadyRunning
    from clarad.listeners import CannotListen
    from clarad.log import set_up
    from clarad.store import StoreError
    from sandbox import EngineError

    defined = definitions.load(settings)
    if defined.problems and settings.strict_config:
        fail(*map(str, defined.problems), "CLARA_STRICT_CONFIG=0 runs what is good")
        return Exit.CONFIG
    set_up(settings.log_level)
    for warning in warnings:
        log.warning("%s", warning)
    for problem in defined.problems:
        log.error("left out: %s", problem)
    _allow_many_connections()
    reasons: dict[type[BaseException], Exit] = {
        AlreadyRunning: Exit.ALREADY_RUNNING,
        StoreError: Exit.STORE,
        CannotListen: Exit.CANNOT_LISTEN,
        EngineError: Exit.NO_SANDBOX,
    }
    try:
        daemon.run(settings, defined, arguments.environment, handed)
    except Exception as error:
        cause = innermost(error)
        if type(cause) in reasons:
            fail(str(cause))
            return reasons[type(cause)]
        log.critical("the daemon failed; this is a bug", exc_info=error)
        return Exit.FAILED
    return Exit.STOPPED


def _allow_many_connections() -> None:
    # The soft limit is 1024 for the sake of programs that use select(2); we do not.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
