"""The folder of a run: its files, how they are written and how they are read while others write; no torch.

`files` names them. `directory` prepares and locks the folder. `recorder` writes what rank 0 records, through `journal`
(`metrics.jsonl`). `status` and `report` read all of it.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.run.directory import RunDirectoryError
    from pipeline.run.recorder import Recorder
    from pipeline.run.report import write_report
    from pipeline.run.status import RunStatus, read_status

__all__ = ["Recorder", "RunDirectoryError", "RunStatus", "read_status", "write_report"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Recorder": "recorder",
        "RunDirectoryError": "directory",
        "RunStatus": "status",
        "read_status": "status",
        "write_report": "report",
    },
)
