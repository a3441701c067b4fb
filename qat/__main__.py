"""`python -m qat` is the command `qat`."""

import sys

from qat.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
