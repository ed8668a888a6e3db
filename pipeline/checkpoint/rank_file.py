"""One rank's file of a checkpoint, written by a thread while the training goes on."""

import hashlib
import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint.store import rank_file_name
from pipeline.common.atomic import write_text

CHUNK_BYTES = 16 * 2**20
"""Bytes that are hashed and written at once."""
_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class RankWriter:
    """Writes this rank's file of a checkpoint: copies the state into one buffer, which a thread then writes.

    The names, types and addresses of the tensors never change within an attempt, so the safetensors header is made
    once. A save stops the training only for the copy.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], rank: int) -> None:
        """Prepare to save `tensors`; every `start` reads their current values."""
        self._file_name = rank_file_name(rank)
        # Wider types first: every tensor then lies at a multiple of its own element size.
        tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
        self._sources = list(tensors.values())
        header: dict[str, Any] = {}
        offset = 0
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._header = struct.pack("<Q", len(text)) + text
        pinned = torch.cuda.is_available()
        self._buffer = torch.empty(offset, dtype=torch.uint8, pin_memory=pinned)
        self._views = []
        offset = 0
        for tensor in self._sources:
            size = tensor.numel() * tensor.element_size()
            self._views.append(self._buffer[offset : offset + size].view(tensor.dtype).view(tensor.shape))
            offset += size
        self._thread: threading.Thread | None = None
        self.error: OSError | None = None

    @torch.no_grad()
    def start(self, folder: Path) -> None:
        """Copy the tensors, and start a thread that writes the copy to `folder`.

        Raises:
            RuntimeError: the previous save is not finished.
        """
        if self._thread is not None:
            raise RuntimeError("the previous checkpoint is still being written")
        torch._foreach_copy_(self._views, self._sources, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.error = None
        self._thread = threading.Thread(target=self._write, args=(folder,), name="checkpoint-writer", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> bool:
        """Whether a save was started and `finish` was not called yet."""
        return self._thread is not None

    @property
    def done(self) -> bool:
        """Whether the thread of a started save has ended, with or without an error."""
        return self._thread is not None and not self._thread.is_alive()

    def finish(self) -> OSError | None:
        """Wait for the started save; return its error, or None."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.error

    def _write(self, folder: Path) -> None:
        try:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            path = folder / self._file_name
            digest = hashlib.sha256(self._header)
            data: memoryview = self._buffer.numpy().data
            with path.open("wb", buffering=0) as file:
                file.write(self._header)
                for begin in range(0, len(data), CHUNK_BYTES):
                    chunk = data[begin : begin + CHUNK_BYTES]
                    digest.update(chunk)
                    written = 0
                    while written < len(chunk):
                        written += file.write(chunk[written:])
                os.fsync(file.fileno())
            write_text(
                folder / f"{self._file_name}.sha256",
                f"{digest.hexdigest()} {len(self._header) + len(data)}\n",
                durable=True,
            )
        except OSError as error:
            self.error = error
