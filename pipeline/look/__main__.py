"""Entry of `python -m pipeline.look`."""

import sys

from pipeline.common.cli import load_main, run_main

if __name__ == "__main__":
    sys.exit(run_main(load_main("pipeline.look.command"), "python -m pipeline.look"))
