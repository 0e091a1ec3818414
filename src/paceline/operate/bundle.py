"""Everything a run needs, in one folder, for a machine that reaches no registry.

    DIR/
      install.sh          verify, make a virtual environment, and a script that runs the run
      run.sh              the run, with the bundle's own model and data
      MANIFEST.json       what is in it and for what; every file with its size and SHA-256
      SHA256SUMS          the same hashes, as sha256sum reads them
      requirements.txt    the exact wheels, with hashes
      constraints.txt     the lock they were chosen by
      wheels/  model/  data/  tokenizer/  recipe.toml

The same inputs make the same bytes. Made again, it takes up where it was left.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import paceline
from paceline.errors import InputError
from paceline.operate.bundle_files import HOWS, STATE, Files, files_under, write_manifest
from paceline.operate.bundle_wheels import WheelOrder, gather, requirements
from paceline.operate.launch_plan import Errand
from paceline.rundir import RunDir, file_sha256, make_folder

__all__ = ["BundleOrder", "make", "plan", "script"]

_FOLDERS = {"model.path": "model", "data.path": "data", "data.tokenizer": "tokenizer"}
Progress = Callable[[float, float | None, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleOrder:
    """A run, the wheels for it, and where they go; `how` its files are brought in."""

    errand: Errand
    wheels: WheelOrder
    out: Path
    how: str

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise InputError(f"--files {self.how!r} is none that is known.", hint=", ".join(HOWS))

    @property
    def python(self) -> str:
        """The Python that installs it."""
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.wheels.python or here


def plan(order: BundleOrder) -> dict[str, Path]:
    """Files that are brought in, by their names in the bundle. Raises InputError."""
    found: dict[str, Path] = {}
    for path, folder in _folders(order).items():
        found |= files_under(folder, path)
    if not order.wheels.constraints.is_file():
        raise InputError(
            f"There is no lock at {order.wheels.constraints}.",
            hint="--constraints FILE: exact versions, as constraints.txt of paceline's source",
        )
    return found | {"constraints.txt": order.wheels.constraints}


def make(order: BundleOrder, *, show: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    """Make the bundle; returns counts. Raises PacelineError."""
    sources = plan(order)
    out = order.out
    if out.exists() and not (out / STATE).is_file():
        RunDir.require_free(out)
    make_folder(out)
    files = Files(out, how=order.how, progress=progress)
    files.write("recipe.toml", _recipe_text(order))
    files.require_room(sources)
    for name, path in sources.items():
        files.bring(name, path)
    show("wheels")
    removed = gather(order.wheels, out / "wheels", show)
    wheels = sorted(path.name for path in (out / "wheels").glob("*.whl"))
    for name in wheels:
        files.own(f"wheels/{name}")
    files.write(
        "requirements.txt", requirements([(name, files.names[f"wheels/{name}"]) for name in wheels])
    )
    for name in ("install.sh", "run.sh"):
        files.write(name, script(name, order))
    removed += write_manifest(files, _facts(order))
    return {
        "out": str(out),
        "files": len(files.names),
        "bytes": sum((out / name).stat().st_size for name in files.names),
        "wheels": len(wheels),
        "copied_bytes": files.copied_bytes,
        "removed": removed,
        "sums_sha256": file_sha256(out / "SHA256SUMS"),
    }


def _recipe_text(order: BundleOrder) -> str:
    recipe = order.errand.recipe
    return "" if recipe is None else recipe.read_text()


def _facts(order: BundleOrder) -> dict[str, Any]:
    return {
        "paceline": paceline.__version__,
        "benchmark": order.errand.benchmark,
        "engine": order.errand.engine,
        "extras": list(order.wheels.extras),
        "python": order.python,
        "platforms": list(order.wheels.platforms),
        "run": ["recipe.toml", *_words(order, "")],
    }


def _folders(order: BundleOrder) -> dict[Path, str]:
    """Where each thing lies; a tokenizer that is the model's own lies there once."""
    found: dict[Path, str] = {}
    for key, path in order.errand.files.items():
        found.setdefault(path, _FOLDERS[key])
    return found


def _words(order: BundleOrder, folder: str) -> list[str]:
    """The run's words, with each file where the bundle has it."""
    words = list(order.errand.words)
    for key, path in order.errand.files.items():
        lies_in = _folders(order)[path]
        inside = lies_in if path.is_dir() else f"{lies_in}/{path.name}"
        flag = {"model.path": ["--model"], "data.path": ["--data"]}.get(key)
        words += [*flag, folder + inside] if flag else ["--set", f"{key}={folder}{inside}"]
    return words


# Stands for the bundle's folder, wherever that will be.
_MARK = "\0"


class _Marked(Template):
    delimiter = "@@"


def script(name: str, order: BundleOrder) -> str:
    """One of the two scripts of a bundle: install.sh or run.sh."""
    words = ['"$bundle"/recipe.toml', *map(_quoted, _words(order, _MARK))]
    text = (resources.files("paceline.operate") / "templates" / name).read_text()
    return _Marked(text).safe_substitute(
        benchmark=order.errand.benchmark,
        engine=order.errand.engine,
        python=order.python,
        machine=_machine(order),
        words=" ".join(words),
    )


def _quoted(word: str) -> str:
    """Quoted for a shell, with the bundle's folder where the mark stands."""
    key, marked, rest = word.partition(_MARK)
    before = shlex.quote(key) if key else ""
    return f'{before}"$bundle"/{shlex.quote(rest)}' if marked else shlex.quote(word)


def _machine(order: BundleOrder) -> str:
    """What `uname -m` says where the wheels fit."""
    for machine in ("x86_64", "aarch64"):
        if any(name.endswith(machine) for name in order.wheels.platforms):
            return machine
    return platform.machine()
