"""Entry of `python -m pipeline.evaluate`."""

import sys

from pipeline.common.cli import run_main
from pipeline.evaluate.command import main

if __name__ == "__main__":
    sys.exit(run_main(main, "python -m pipeline.evaluate"))
