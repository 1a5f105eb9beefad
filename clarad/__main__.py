"""The command `clarad`, and `python -m clarad`."""

import signal
import sys


def main() -> int:
    """Import the command, and run it; Ctrl-C meanwhile ends the process without a word."""
    # Python would show what was being imported. `clarad.cli` has Ctrl-C raised again once there is
    # somebody to catch it. Where it is ignored, as below nohup, that stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from clarad import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
