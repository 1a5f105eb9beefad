"""`python -m bench [NAME ...]`: measure, report, clean up."""

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable

from bench import (
    cancel,
    connections,
    firing,
    hooks,
    idle,
    log,
    overload,
    shared,
    startup,
    strangers,
    turns,
)
from bench.report import Figure, show_figures

_BENCHES: dict[str, Callable[[], list[Figure]]] = {
    "turns": turns.run,
    "cancel": cancel.run,
    "connections": connections.run,
    "startup": startup.run,
    "firing": firing.run,
    "hooks": hooks.run,
    "idle": idle.run,
    "log": log.run,
    "overload": overload.run,
    "shared": shared.run,
    "strangers": strangers.run,
}
_INTERRUPTED = 128 + signal.SIGINT


def main() -> int:
    """Run the measurements that are named, or all, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_BENCHES))
    names = parser.parse_args().names or list(_BENCHES)
    if unknown := [name for name in names if name not in _BENCHES]:
        parser.error(f"no such measurement: {', '.join(unknown)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    interrupted = False
    try:
        _run(names)
    except* KeyboardInterrupt:
        interrupted = True
    if interrupted:
        print("\ninterrupted", file=sys.stderr)
    return _INTERRUPTED if interrupted else 0


def _run(names: list[str]) -> None:
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, "
        f"load {os.getloadavg()[0]:.1f} before, databases in {tempfile.gettempdir()}",
        flush=True,
    )
    figures: list[Figure] = []
    try:
        for name in names:
            figures += _BENCHES[name]()
    finally:  # what was measured before something failed, or Ctrl-C, is worth having
        if figures:
            show_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
