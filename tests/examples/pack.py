"""Pack a folder of images (`FOLDER/CLASS/IMAGE`) into shards, from Python instead of `python -m sharding.build`.

    uv run python tests/examples/pack.py FOLDER

It writes `shards/pets-train-0000.tar` and so on, with a manifest and an index. An interrupted build resumes when it is
called again, and a finished one returns its manifest.
"""

import sys

from sharding.build import BuildOptions, build


def main(source: str) -> None:
    """Pack `source` and print what the shards hold."""
    options = BuildOptions(source=source, output="shards", split="train", name="pets", workers=1)
    [manifest] = build(options, log=print)
    print(f"{manifest.num_samples} images in {len(manifest.shards)} shards; classes:")
    print(", ".join(entry.name for entry in manifest.classes))


if __name__ == "__main__":
    main(sys.argv[1])
