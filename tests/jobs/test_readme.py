"""The README names the test of each ending; each name is that of a test."""

import re

from tests.jobs.support import REPOSITORY

FILES = {
    "L": "tests/jobs/test_endings.py",
    "S": "tests/slurm/test_endings.py",
    "A": "tests/pipeline/train/test_attempt.py",
    "E": "tests/pipeline/train/test_evaluation.py",
    "T": "tests/slurm/test_training.py",
    "C": "tests/pipeline/status/test_command.py",
}


def test_each_ending_in_the_readme_has_a_test():
    readme = (REPOSITORY / "jobs/README.md").read_text(encoding="utf-8")
    table = readme.partition("| it comes |")[2].partition("\n\n")[0].splitlines()[2:]
    for row in table:
        tests = row.rstrip("| ").rpartition("| ")[2]
        words = re.findall(r"\b([LSAETC]) `|`(test_\w+)", tests)
        assert words, row
        file = ""
        for letter, name in words:
            file = FILES[letter] if letter else file
            assert not name or f"def {name}(" in (REPOSITORY / file).read_text(encoding="utf-8"), (file, name)
