"""Read a file of weights without executing anything that is in it: safetensors, and torch's zip and older format.

Training scripts store more than weights: timm's saver adds its command line as an `argparse.Namespace` and its metric
as a NumPy scalar, mmengine its history. `torch.load(weights_only=True)` refuses these classes. Here a stand-in, which
keeps and does nothing, takes the place of each class in `INERT`; any other class or function is refused.
"""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

__all__ = ["SUFFIXES", "WeightsError", "check_suffix", "read_content"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""File name endings that are read. `.pth.tar`, as timm and the authors write it, counts as `.pth`."""

INERT = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "torch.torch_version.TorchVersion",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
"""Classes and functions whose values nobody needs here: a pickle that refers to them is read, and none is called."""

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
_ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*m")
_COPY_AGAIN = "copy or download it again"


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line that names the file and says what to do."""


class _Inert:
    """Stands for a value that is not read."""

    def __init__(self, *_: Any) -> None:
        pass

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def check_suffix(path: Path) -> None:
    """Refuse a file name that does not end as a file of weights.

    Raises:
        WeightsError: the message lists the endings that are read.
    """
    if _suffix(path) not in SUFFIXES:
        raise WeightsError(f"{path} is not a file of weights: its name ends in none of {', '.join(SUFFIXES)}")


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".tar" else path).suffix


def read_content(path: Path) -> Any:
    """Return what a file holds, tensors on the CPU; mostly dicts, but a torch file may hold anything.

    Raises:
        WeightsError: the file is not whole, is no file of weights, or could be read only by running code in it.
    """
    check_suffix(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise WeightsError(f"{path} is empty: {_COPY_AGAIN}")
    if start.lstrip().startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not weights: a download has failed; {_COPY_AGAIN}")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is Git LFS's pointer to a file, not the file: fetch it with git lfs pull")
    if start[8:9] == b"{" or _suffix(path) == ".safetensors":
        return _read_safetensors(path)
    if start.startswith(b"PK"):
        _check_zip(path, size)
    elif not start.startswith(b"\x80"):
        raise WeightsError(f"{path} is not a file of weights: torch and safetensors write no such content")
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not whole or no safetensors file ({_one_line(error)}): {_COPY_AGAIN}") from error


def _check_zip(path: Path, size: int) -> None:
    """Check that every record is there as it was written: torch itself ignores the checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise WeightsError(f"{path} is not whole ({size:,} bytes, and its end is missing): {_COPY_AGAIN}") from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged (the checksum of {damaged} differs): {_COPY_AGAIN}")
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(
            f"{path} is a TorchScript program, not weights: write them where it was made with "
            "torch.save(module.state_dict(), FILE)"
        )


def _read_torch(path: Path) -> Any:
    inert: list[Any] = [(_Inert, name) for name in INERT]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(inert):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any exception in its reader
        refused = _REFUSED.search(str(error))
        if refused:
            raise WeightsError(_explain_refused(path, refused[1])) from error
        if "Unsupported operand" in str(error):
            raise WeightsError(
                f"{path} is a pickle of a newer protocol than torch writes by default, which is not read "
                "without running it: write it again with torch.save(model.state_dict(), FILE)"
            ) from error
        raise WeightsError(f"{path} is not whole, or no file of weights ({_one_line(error)}): {_COPY_AGAIN}") from error


def _explain_refused(path: Path, name: str) -> str:
    is_class = name.rpartition(".")[2][:1].isupper()
    holds = f"a pickled {name}, whose code would have to run" if is_class else f"a call of {name}"
    return (
        f"{path} is refused, and nothing in it was run: it holds {holds}; if you trust its origin, write the weights "
        "alone there, with torch.save(model.state_dict(), FILE)"
    )


def _one_line(error: Exception, limit: int = 120) -> str:
    """Return the first sentence of a library's message, without line breaks and escape codes."""
    text = _ESCAPE_CODES.sub("", str(error)).strip()
    first = re.split(r"\n|\. |\.$", text, maxsplit=1)[0]
    return " ".join(first.split())[:limit] or type(error).__name__
