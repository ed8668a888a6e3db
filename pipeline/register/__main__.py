"""Entry of `python -m pipeline.register`."""

import sys

from pipeline.common.cli import run_main
from pipeline.register.command import main

if __name__ == "__main__":
    sys.exit(run_main(main, "python -m pipeline.register"))
