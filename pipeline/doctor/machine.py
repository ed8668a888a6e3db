"""Looks at this machine: versions, cores, memory, limits, GPUs, the compiler and the JPEG decoder."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from jobs import describe_machine
from pipeline.doctor.finding import Finding

FILES = 1024
"""Open files that a loader with many shards and workers may need."""


def look_at_machine() -> Iterator[Finding]:
    """Yield what the packages and the hardware of this machine are."""
    found = describe_machine([])
    packages = found["packages"]
    assert isinstance(packages, dict)
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    yield Finding("ok", f"python {found['python']}; {versions}")
    yield Finding("ok", f"{found['cpus']} cores, {found['memory_gb']} GB of memory, {found['system']}")
    gpus = found["gpus"]
    assert isinstance(gpus, list)
    yield from (Finding("ok", f"GPU {gpu}") for gpu in gpus)
    if not gpus:
        yield Finding("ok", "no GPU (nvidia-smi lists none): on a login node this is usual")
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = limit >= FILES or limit == resource.RLIM_INFINITY
    advice = "" if enough else f": a loader may need {FILES}, run `ulimit -n {min(4 * FILES, most)}` first"
    yield Finding("ok" if enough else "warning", f"{limit:,} files may be open{advice}")


def look_at_build() -> Iterator[Finding]:
    """Yield whether the JPEG decoder works, and whether there is a compiler for what is built at run time."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        yield Finding(
            "warning", "no C compiler (cc, or the variable CC): triton's kernels on a GPU and --train.compile need one"
        )
    else:
        yield Finding("ok", f"C compiler {compiler}")
    yield _decoder()


def _decoder() -> Finding:
    import io

    import numpy as np
    from PIL import Image

    try:
        from pipeline.augment.decode import EncodedImage

        file = io.BytesIO()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(file, "JPEG")
        shape = EncodedImage(file.getvalue()).crop(8, 8, 40, 32, enough=32).shape
    except Exception as error:  # whatever a broken installation raises
        return Finding("problem", f"the JPEG decoder does not work ({error}): install the package again")
    return Finding("ok", f"the JPEG decoder gives a crop of {shape[1]} x {shape[0]} pixels")


def look_at_code() -> Iterator[Finding]:
    """Yield where the packages of this project are."""
    import pipeline

    yield Finding("ok", f"this project's code: {Path(pipeline.__file__).parent.parent}")
