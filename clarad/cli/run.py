"""`clarad run`: the daemon in the foreground."""

import argparse
import logging
import os
import resource
import signal
from enum import IntEnum

from clarad import config, log
from clarad.cli import innermost, print_error
from clarad.config.envfile import Overlay
from clarad.log.redaction import password_in, secrets_in
from clarad.systemd import catalogue, handover
from clarad.systemd.catalogue import Entry

logger = logging.getLogger(__name__)


class Exit(IntEnum):
    """Why the daemon has ended, after sysexits.h where it has a name for it."""

    STOPPED = 0
    UNFIT = 65
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
        "for CLARA_DRAIN_TIMEOUT seconds, and leave those that wait to the next start; a\n"
        "second one stops at once."
    )
    parser.epilog = (
        "exit status:\n"
        "  0   stopped when told to\n"
        "  65  the database is damaged, empty though it was in use, or of a newer clarad, or the\n"
        "      installation has lost its name\n"
        "  69  the address cannot be listened on\n"
        "  70  a part of the daemon kept failing; the log says which\n"
        "  71  there are no sandboxes, and SANDBOX_MODE wants them\n"
        "  74  the database cannot be used, or was deleted, or the state directory was, or a file\n"
        "      there cannot be written, as when the disk is full\n"
        "  75  the state directory or the database is another daemon's, or the directory cannot\n"
        "      be written\n"
        "  78  a setting, a hook or a task is wrong; `clarad check` says more"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run until stopped; every reason not to is one line."""
    # Both signals end what comes before the loop that listens for them, as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(arguments.environment, handover.receive())
    except BaseException as error:
        if isinstance(innermost(error), KeyboardInterrupt):
            return Exit.STOPPED
        raise
    finally:
        log.close()
        signal.signal(signal.SIGTERM, before)


def _run(overlay: Overlay, handed: handover.Handover) -> int:
    try:
        settings, warnings = config.load()
    except config.ConfigError as error:
        set_up_log(error.settings)
        return refuse(Exit.CONFIG, catalogue.CONFIG_REFUSED, *error.problems)
    set_up_log(settings)
    from clarad.app import service
    from clarad.automation import definitions
    from clarad.config.files import Gone, Unwritable
    from clarad.config.instance import AlreadyRunning, Nameless
    from clarad.store import LeaseLost, StoreError, Taken, Unfit
    from clarad.transport.listeners import CannotListen
    from clarad.transport.tls import TlsError
    from sandbox import EngineError

    defined = definitions.load(settings)
    if defined.problems and settings.strict_config:
        hint = "CLARA_STRICT_CONFIG=0 runs what is good"
        problems = map(str, defined.problems)
        return refuse(Exit.CONFIG, catalogue.CONFIG_REFUSED, *problems, hint)
    log.hide(defined.secrets())
    for warning in warnings:
        logger.warning("%s", warning, extra=catalogue.CONFIG_QUESTIONABLE.about())
    for problem in defined.problems:
        logger.error("left out: %s", problem, extra=catalogue.CONFIG_QUESTIONABLE.about())
    _allow_many_connections()
    reasons: dict[type[BaseException], tuple[Exit, Entry]] = {
        AlreadyRunning: (Exit.ALREADY_RUNNING, catalogue.ALREADY_RUNNING),
        Nameless: (Exit.UNFIT, catalogue.STATE_GONE),
        Gone: (Exit.STORE, catalogue.STATE_GONE),
        Unwritable: (Exit.STORE, catalogue.STORE_UNUSABLE),
        Unfit: (Exit.UNFIT, catalogue.STORE_UNFIT),
        Taken: (Exit.ALREADY_RUNNING, catalogue.ALREADY_RUNNING),
        LeaseLost: (Exit.STORE, catalogue.LEASE_LOST),
        StoreError: (Exit.STORE, catalogue.STORE_UNUSABLE),
        CannotListen: (Exit.CANNOT_LISTEN, catalogue.CANNOT_LISTEN),
        EngineError: (Exit.NO_SANDBOX, catalogue.NO_SANDBOX),
        TlsError: (Exit.CONFIG, catalogue.CONFIG_REFUSED),
    }
    try:
        service.run(settings, defined, overlay, handed)
    except Exception as error:
        cause = innermost(error)
        for kind, reason in reasons.items():
            if isinstance(cause, kind):
                return refuse(*reason, str(cause))
        about = catalogue.DAEMON_FAILED.about()
        logger.critical("the daemon failed; this is a bug", exc_info=error, extra=about)
        return Exit.FAILED
    return Exit.STOPPED


def set_up_log(settings: config.Settings) -> None:
    """Have the log go where the settings say, without the secrets that are known."""
    secrets = [settings.gateway_secret or "", *password_in(settings.database_url)]
    secrets += secrets_in(os.environ)  # what hooks and tasks inherit
    log.set_up(settings.log_level, settings.log_format, secrets)


def refuse(status: Exit, entry: Entry, *problems: str) -> int:
    """Say why the daemon does not run: to people as all commands do, else in the log."""
    if log.is_for_people():
        log.close()  # in this order
        print_error(*problems)
    else:
        for problem in problems:
            logger.critical("%s", problem, extra=entry.about())
    return status


def _allow_many_connections() -> None:
    # The soft limit is 1024 for the sake of programs that use select(2); we do not.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
