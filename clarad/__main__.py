"""The command `clarad`, and `python -m clarad`."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""The exit status that shells give a command which Ctrl-C has ended."""


def exit_silently(_number: int, _frame: FrameType | None) -> None:
    """End the process at once. (The kernel does not end process 1, a container's, by itself.)"""
    os._exit(INTERRUPTED)


def main() -> int:
    """Import the command, and run it; Ctrl-C meanwhile ends the process without a word."""
    # Python would show what was being imported. Where it is ignored, as below nohup, that stays.
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heard:
        signal.signal(signal.SIGINT, exit_silently)
    from clarad import cli

    def begin() -> None:
        """Have Ctrl-C raise again: from here on it is caught."""
        if is_heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    return cli.main(begin=begin)


if __name__ == "__main__":
    sys.exit(main())
