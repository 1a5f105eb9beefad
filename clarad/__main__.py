"""`python -m clarad` is the command `clarad`."""

import sys

from clarad.cli import main

if __name__ == "__main__":
    sys.exit(main())
