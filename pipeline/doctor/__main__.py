"""Entry of `python -m pipeline.doctor`."""

import sys

from pipeline.common.cli import load_main, run_main

if __name__ == "__main__":
    sys.exit(run_main(load_main("pipeline.doctor.command"), "python -m pipeline.doctor"))
