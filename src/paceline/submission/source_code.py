"""The code of a submission: paceline as it was when the runs were made.

Where the package lies in its git repository and has the commit that the manifest names, the files
are taken from that commit; else they are those that are installed, and the note says so.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paceline

__all__ = ["source_files"]

_WANTED = ("LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml", "src")
_FOLDER = f"paceline-{paceline.__version__}"
_SUFFIXES = (".py", ".typed", ".jsonl", ".parquet")


def source_files(code: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """Path -> content, and one sentence on where they come from.

    `code` is the manifest's: {"commit": hex or None, "modified": bool or None}.
    """
    commit = code.get("commit")
    if commit and not code.get("modified") and (files := _from_git(str(commit))):
        return files, f"The code is paceline at git commit {commit}."
    told = f"git commit {commit}, changed since" if commit else "no commit on record"
    note = f"The code is the installed paceline {paceline.__version__} ({told})."
    package = Path(paceline.__file__).parent
    return {
        f"{_FOLDER}/src/paceline/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.suffix in _SUFFIXES
    }, note


def _from_git(commit: str) -> dict[str, bytes]:
    """The repository's files at a commit; empty when this is no such repository."""
    package = Path(paceline.__file__).parent
    try:
        top = _git(package, "rev-parse", "--show-toplevel").decode().strip()
        if Path(top) / "src" / "paceline" != package:
            return {}
        there = _git(Path(top), "ls-tree", "--name-only", commit).decode().split()
        wanted = [name for name in _WANTED if name in there]
        archive = _git(Path(top), "archive", "--format=tar", commit, *wanted)
    except (OSError, subprocess.CalledProcessError):
        return {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {
            f"{_FOLDER}/{member.name}": extracted.read()
            for member in tar.getmembers()
            if member.isfile() and (extracted := tar.extractfile(member)) is not None
        }
    return dict(sorted(files.items()))


def _git(folder: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout
