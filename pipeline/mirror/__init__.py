"""A copy of a run in another place, and the way on from it: no torch.

`place` reads and writes files there, `layout` says what is where, `claim` decides who writes. `copier` brings the
mirror up to date, in a process (`worker`) that rank 0 starts and ends (`handle`). `fetch` brings a run from its mirror,
and `adopt` gives it its MLflow run.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.mirror.claim import check_mirror, use_mirror
    from pipeline.mirror.fetch import fetch_run
    from pipeline.mirror.handle import Mirror
    from pipeline.mirror.place import MirrorError

__all__ = ["Mirror", "MirrorError", "check_mirror", "fetch_run", "use_mirror"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Mirror": "handle",
        "MirrorError": "place",
        "check_mirror": "claim",
        "fetch_run": "fetch",
        "use_mirror": "claim",
    },
)
