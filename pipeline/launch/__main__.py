"""Entry of `python -m pipeline.launch`."""

import sys

from pipeline.common.cli import ended_quietly
from pipeline.launch.command import main

if __name__ == "__main__":
    sys.exit(ended_quietly(main))
