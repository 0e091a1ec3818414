"""`paceline site --init`: the workflow files of a results repository.

    check.yml   on a pull request: `paceline check` of the submitters that it changes, with
                annotations on the lines
    site.yml    on the branch of the results: the site, built and published on GitHub Pages

Actions are pinned by commit, a pull request's job may read and nothing else, and no value of a
pull request is put into a script.
"""

from __future__ import annotations

import re
from pathlib import Path

import paceline
from paceline.errors import InputError
from paceline.report.page import asset
from paceline.rundir import make_folder, write_atomically

__all__ = ["init_workflows", "workflow_files"]

_PACKAGE = re.compile(r"[A-Za-z0-9._\[\],=<>~! @:/+#-]+")
_BRANCH = re.compile(r"[A-Za-z0-9._/-]+")


def workflow_files(*, package: str | None = None, branch: str = "main") -> dict[str, str]:
    """The files by their path in the repository. `package` is what pip installs.

    Raises InputError for a package or branch that would be something else in YAML.
    """
    package = package or f"paceline[report]=={paceline.__version__}"
    if not _PACKAGE.fullmatch(package):
        raise InputError(f"--package {package!r}: not what pip takes as a package.")
    if not _BRANCH.fullmatch(branch):
        raise InputError(f"--branch {branch!r} cannot be the name of a branch.")
    return {
        f".github/workflows/{name}": asset(f"workflow_{name}")
        .replace("@PACKAGE@", package)
        .replace("@BRANCH@", branch)
        for name in ("check.yml", "site.yml")
    }


def init_workflows(
    repository: Path, *, package: str | None = None, branch: str = "main"
) -> list[Path]:
    """Write the files; returns those that were written. Raises InputError.

    A file that is there and is not what would be written is somebody's work and stays.
    """
    files = workflow_files(package=package, branch=branch)
    if not repository.is_dir():
        raise InputError(f"{repository}: no such directory.", hint="give a results repository")
    for name, text in files.items():
        path = repository / name
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise InputError(f"{path} is there and differs.", hint="move it away first")
    written = []
    for name, text in files.items():
        path = repository / name
        make_folder(path.parent)
        if not path.exists():
            write_atomically(path, text)
            written.append(path)
    return written
