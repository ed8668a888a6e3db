"""One MLflow run for a training, whatever happens to its attempts and to the server.

Rank 0 holds a `Tracker`, which tells a worker process up to which step checkpoints cover the metrics. The worker reads
the files of the run and sends them with a `Shipper`. `client` connects to the server.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.tracking.client import TrackingError, mlflow_session
    from pipeline.tracking.shipper import Shipper
    from pipeline.tracking.state import TrackingState, load_state, tracking_uri_of
    from pipeline.tracking.tracker import Tracker

__all__ = ["Shipper", "Tracker", "TrackingError", "TrackingState", "load_state", "mlflow_session", "tracking_uri_of"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Shipper": "shipper",
        "Tracker": "tracker",
        "TrackingError": "client",
        "TrackingState": "state",
        "load_state": "state",
        "mlflow_session": "client",
        "tracking_uri_of": "state",
    },
)
