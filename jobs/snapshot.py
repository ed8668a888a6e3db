"""The code as it was at submission: a job that is requeued tomorrow must not run what is edited today."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import JobError


@dataclass(frozen=True, kw_only=True)
class Code:
    """Code that a job runs.

    Attributes:
        root: folder that holds the packages; in front of everything else on the processes' path.
        packages: those that `digest` covers.
        digest: of all their files at submission, or "".
        commit: of the checkout that they come from, or "".
    """

    root: Path
    packages: tuple[str, ...] = ()
    digest: str = ""
    commit: str = ""

    def words(self) -> str:
        """A sentence on what runs now, which says so where it is not what was submitted."""
        if not self.packages:
            return f"the packages in {self.root}"
        now = digest(self.root, self.packages)
        origin = f" of commit {self.commit}" if self.commit else ""
        if now == self.digest:
            return f"{now}{origin}, as submitted ({self.root})"
        return f"CHANGED since the submission: {self.digest}{origin} then, {now} now ({self.root})"


def _files(root: Path, packages: Sequence[str]) -> Iterator[Path]:
    for package in packages:
        found = sorted(path for path in (root / package).rglob("*") if path.is_file() and path.suffix != ".pyc")
        if not found:
            raise JobError(f"there is no package {package} in {root}")
        yield from found


def digest(root: Path, packages: Sequence[str]) -> str:
    """A digest over names and contents of the packages' files in `root`."""
    total = hashlib.sha256()
    for path in _files(root, packages):
        total.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def settle(root: Path, packages: Sequence[str], into: Path | None, *, copy: bool = True) -> Code:
    """Settle which code a job runs: a copy taken now, or the checkout as it will be.

    Args:
        root: folder that holds the packages.
        packages: their names.
        into: private folder of the run for copies; None for no copy. A copy is named after its digest, and one that was
            taken before from the same code serves again.
        copy: whether to take the copy now, or only to tell where it would be.

    Raises:
        JobError: a package is missing.
    """
    name, commit = digest(root, packages), git_state(root)
    if into is None:
        return Code(root=root, packages=tuple(packages), digest=name, commit=commit)
    target = into / name
    if copy and not target.exists():
        beside = into / f"{name}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        for path in _files(root, packages):
            twin = beside / path.relative_to(root)
            twin.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, twin)
        beside.rename(target)
    return Code(root=target, packages=tuple(packages), digest=name, commit=commit)


def git_state(root: Path) -> str:
    """The commit of the checkout in `root`, with `+changes` where files differ from it; "" outside git."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if not commit:
        return ""
    return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit
