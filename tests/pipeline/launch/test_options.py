"""How flags override a recipe, and which flags are refused."""

import pytest

from pipeline.config.schema import ConfigError
from pipeline.launch.options import LaunchError, parse


def test_flags_override_the_recipe():
    options = parse(["--recipe", "demo", "--train.steps", "7", "--slurm", "exclusive=true", "mail-user=a@b"])
    assert options.train.steps == 7
    assert options.train.model.name == "transxnet_n"
    assert options.resources.slurm == ("exclusive=true", "mail-user=a@b")
    assert options.resources.world_size == 2
    with pytest.raises(LaunchError, match="did you mean tiny"):
        parse(["--recipe", "tinny"])
    with pytest.raises(SystemExit):
        parse(["--train.sed", "3"])


@pytest.mark.parametrize("name", ["train.zero_stage", "zero_stage"])
def test_a_flag_that_contradicts_the_sweep_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"--train\.zero-stage is given as a flag and in --sweep"):
        parse(["--sweep", f"{name}=0,1", "--train.zero-stage", "2"])
