"""The run directory: its files, and how they are written and read; no torch.

`files` names them. `directory` prepares and locks the folder, and `config` reads its `config.json`. `recorder` writes
what rank 0 records: the journal (`metrics.jsonl`) and the attempt log (`attempts.jsonl`). `status` and `report` read
all of it.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.run.config import RunConfig, read_config
    from pipeline.run.files import RunDirectoryError
    from pipeline.run.recorder import Recorder
    from pipeline.run.report import write_report
    from pipeline.run.status import RunStatus, read_status

__all__ = ["Recorder", "RunConfig", "RunDirectoryError", "RunStatus", "read_config", "read_status", "write_report"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Recorder": "recorder",
        "RunConfig": "config",
        "RunDirectoryError": "files",
        "RunStatus": "status",
        "read_config": "config",
        "read_status": "status",
        "write_report": "report",
    },
)
