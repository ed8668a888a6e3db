"""Entry of `python -m pipeline.launch`."""

import sys

from pipeline.common.cli import load_main

if __name__ == "__main__":
    sys.exit(load_main("pipeline.launch.command")())
