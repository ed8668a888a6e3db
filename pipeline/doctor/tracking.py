"""Looks at MLflow: whether the store can be opened, answers and takes a run."""

import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import InputError, one_line
from pipeline.common.secrets import mask_secrets
from pipeline.doctor.finding import Finding

EXPERIMENT = "pipeline.doctor"
"""Experiment of the runs that the doctor creates and deletes."""


def look_at_tracking() -> Iterator[Finding]:
    """Yield whether a run can be written into the store that a launch from this folder would use."""
    from pipeline.tracking.address import check_address, local_database, resolve_tracking_uri
    from pipeline.tracking.client import TrackingError, mlflow_session

    uri = resolve_tracking_uri(Path.cwd())
    shown = mask_secrets(uri)
    advice = "trainings go on without it, and `python -m pipeline.status --sync` sends later what it missed"
    try:
        check_address(uri)
        database = local_database(uri)
        if database is not None and not database.exists():
            yield Finding("ok", f"MLflow: the first launch from this folder creates {database}")
            return
        began = time.monotonic()
        with mlflow_session(uri, timeout_s=10, retries=0) as client:
            found = client.get_experiment_by_name(EXPERIMENT)
            experiment = client.create_experiment(EXPERIMENT) if found is None else found.experiment_id
            run = client.create_run(experiment).info.run_id
            client.log_metric(run, "answers", 1.0)
            client.delete_run(run)
    except InputError as error:
        yield Finding("problem", f"{error}; a launch refuses it")
    except TrackingError as error:
        yield Finding("problem", f"{error}; {advice}")
    except Exception as error:  # MLflow raises its own errors and those of its HTTP client
        yield Finding("problem", f"MLflow at {shown} takes no run: {one_line(error)}; {advice}")
    else:
        yield Finding("ok", f"MLflow at {shown} takes runs ({time.monotonic() - began:.1f} s for one)")
