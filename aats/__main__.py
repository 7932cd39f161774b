"""`python -m aats` is the `aats` command."""

import sys

from aats.cli import main

if __name__ == "__main__":
    sys.exit(main())
