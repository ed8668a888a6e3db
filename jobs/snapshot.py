"""A snapshot of the code at submission, so that a job that is requeued later runs the same code."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import JobError


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code that a job runs.

    Attributes:
        root: folder with the packages; first on the import path of the processes.
        packages: names of the packages that `digest` covers.
        digest: digest over all files of the packages at submission, or "".
        commit: commit of the checkout from which the packages come, or "".
    """

    root: Path
    packages: tuple[str, ...] = ()
    digest: str = ""
    commit: str = ""

    def describe(self) -> str:
        """Describe the code that runs now, and whether it has changed since the submission."""
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
    """A digest over the names and contents of all files of the packages in `root`; 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path in _files(root, packages):
        total.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def take_snapshot(root: Path, packages: Sequence[str], into: Path | None, *, copy: bool = True) -> Code:
    """Copy the packages into a snapshot, and return the code that a job will run.

    Args:
        root: folder with the packages.
        packages: names of the packages.
        into: private folder of the run for snapshots; None to run the checkout itself, with all later changes. A
            snapshot is named after its digest, and one of the same code is used again.
        copy: whether to copy now; False writes nothing and only returns where the snapshot would be.

    Raises:
        JobError: a package is missing.
    """
    name, commit = digest(root, packages), git_state(root, packages)
    if into is None:
        return Code(root=root, packages=tuple(packages), digest=name, commit=commit)
    target = into / name
    if copy and not target.exists():
        temporary = into / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        for path in _files(root, packages):
            copied = temporary / path.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
        temporary.rename(target)
    return Code(root=target, packages=tuple(packages), digest=name, commit=commit)


def git_state(root: Path, packages: Sequence[str]) -> str:
    """The commit of the checkout in `root`, followed by `+changes` if tracked files differ from it.

    Args:
        root: folder with the packages.
        packages: names of the packages.

    Returns:
        "" outside git, and in a repository that does not track the packages, such as one around an environment.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    if not git("ls-files", "--", *packages):
        return ""
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else commit
