"""`python -m damselfly` is the command line."""

import sys

from damselfly.cli import main

if __name__ == "__main__":
    sys.exit(main())
