"""The folder of a sweep."""

from pathlib import Path

import pytest

from pipeline.config.schema import ConfigError
from pipeline.run.sweep import prepare_folder, read_folder


def test_values_may_be_added_to_a_sweep_and_a_run_is_no_sweep(tmp_path: Path):
    prepare_folder(tmp_path, ["train.seed=1,2"], ["seed=1", "seed=2"])
    key = (read_folder(tmp_path) or {})["key"]
    prepare_folder(tmp_path, ["train.seed=2,3"], ["seed=2", "seed=3"])
    assert read_folder(tmp_path) == {"key": key, "sweep": ["train.seed=2,3"], "members": ["seed=1", "seed=2", "seed=3"]}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the folder of a run"):
        prepare_folder(tmp_path, ["train.seed=1"], ["seed=1"])
