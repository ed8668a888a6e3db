"""The documents say what is there: they quote the examples as they are, and name files and folders that exist."""

import re
import textwrap
from pathlib import Path

import pytest

from tests.support import REPOSITORY

EXAMPLES = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith(("test_", "__")))
PACKAGES = ("pipeline", "sharding", "jobs", "transxnet")
NAMES = (
    "README.md",
    ".github/CONTRIBUTING.md",
    *(f"{package}/README.md" for package in PACKAGES),
    "pipeline/tracking/README.md",
)
DOCUMENTS = [REPOSITORY / name for name in NAMES]
SNIPPET = re.compile(r"^```python(?: (\S+))?\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
QUOTES_ONLY = ("README.md", "pipeline/README.md")
"""Documents in which each Python snippet is a quotation."""
PATH = re.compile(r"`((?:pipeline|sharding|jobs|transxnet|tests|\.ci)/[\w./-]+|[\w./-]+/[\w-]+\.(?:py|c|h|md))`")
"""A path from the repository or, where it names a source file, from the document."""
NAME = re.compile(r"`([A-Za-z]+(?:_[A-Za-z]+)+)(?:\(\))?`")
"""The name of a function, a test or a field; capitals stand for a name that the reader chooses."""
LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]+)?\)")


def by_name(document: Path) -> str:
    return str(document.relative_to(REPOSITORY))


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_snippets_are_lines_of_the_examples(document: Path):
    for source, snippet in SNIPPET.findall(document.read_text(encoding="utf-8")):
        if not source:
            assert by_name(document) not in QUOTES_ONLY, f"name the example behind ```python:\n{snippet}"
            continue
        lines, length = (REPOSITORY / source).read_text().splitlines(), len(snippet.splitlines())
        passages = ("\n".join(lines[start : start + length]) for start in range(len(lines)))
        assert snippet in map(textwrap.dedent, passages), f"these lines are not in {source}:\n{snippet}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_paths_and_links_exist(document: Path):
    text = document.read_text(encoding="utf-8")
    folders = (REPOSITORY, document.parent)
    named = [path for path in PATH.findall(text) if "NAME" not in path]
    missing = [path for path in named if not any((folder / path).exists() for folder in folders)]
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


def test_names_in_contributing_are_in_the_code():
    names = set(NAME.findall((REPOSITORY / ".github/CONTRIBUTING.md").read_text()))
    code = [*(REPOSITORY / "tests").rglob("*.py"), *(p for name in PACKAGES for p in (REPOSITORY / name).rglob("*.py"))]
    text = "\n".join(path.read_text() for path in code if path != Path(__file__))
    assert len(names) > 8
    assert not [name for name in names if not re.search(r"[A-Z]{4}", name) and not re.search(rf"\b{name}\b", text)]


def test_the_table_of_pipeline_has_every_folder():
    rows = re.findall(r"^\| `(\w+)/` \|", (REPOSITORY / "pipeline/README.md").read_text(), re.MULTILINE)
    folders = {path.parent.name for path in (REPOSITORY / "pipeline").glob("*/__init__.py")}
    assert sorted(rows) == sorted(folders)


@pytest.mark.parametrize("example", EXAMPLES, ids=by_name)
def test_every_example_is_short_and_in_the_readme(example: Path):
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 45
    assert by_name(example) in (REPOSITORY / "README.md").read_text()
