"""Entry of `python -m pipeline.launch`."""

import sys

from pipeline.launch.command import main

if __name__ == "__main__":
    sys.exit(main())
