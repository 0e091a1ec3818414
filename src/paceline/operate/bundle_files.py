"""The files of a bundle: brought in once, hashed once, and listed in a manifest.

A copy is hashed while it is made, under another name, and renamed when it is whole; what was
hashed before and has not changed since is not read again. So a bundle that was broken off goes on
where it was left, and one that is whole is made again in seconds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline.errors import EnvironmentProblem, InputError
from paceline.rundir import disk_problem, make_folder, write_atomically

__all__ = ["HOWS", "STATE", "Files", "files_under", "write_manifest"]

HOWS = ("copy", "hardlink", "symlink")
STATE = ".bundle.json"
_PIECE_BYTES = 16 * 1024 * 1024
# These lie in every bundle; the sums cover the manifest, and the installer checks the sums.
_SUMS, _MANIFEST = "SHA256SUMS", "MANIFEST.json"

Progress = Callable[[float, float | None, str], None]


class Files:
    """A bundle's folder while it is filled. `names` are the files that belong to it so far."""

    def __init__(self, folder: Path, *, how: str, progress: Progress) -> None:
        self.folder = folder
        self.names: dict[str, str] = {}
        self.copied_bytes = 0
        self._how = how
        self._progress = progress
        self._known: dict[str, Any] = {}
        if (folder / STATE).is_file():
            self._known = json.loads((folder / STATE).read_text())

    def require_room(self, sources: Mapping[str, Path]) -> None:
        """Raise EnvironmentProblem when what is still to be copied does not fit on the disk."""
        missing = {name: path for name, path in sources.items() if not self._is_there(name, path)}
        needed = sum(path.stat().st_size for path in missing.values()) if self._how == "copy" else 0
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise EnvironmentProblem(
                f"{self.folder} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are to come.",
                hint="--out on another disk, or --files hardlink on the model's own",
            )

    def bring(self, name: str, source: Path) -> None:
        """Have the file at `source` in the bundle as `name`. Raises EnvironmentProblem."""
        if any(character in name for character in '\n\\"'):
            raise InputError(f"{source} cannot be bundled: its name has odd characters.")
        if not self._is_there(name, source):
            target = self.folder / name
            make_folder(target.parent)
            try:
                sha256 = self._place(name, source.resolve(), target)
            except OSError as error:
                raise disk_problem(target, error) from error
            self._remember(name, source, sha256)
        self.names[name] = self._known[name]["sha256"]

    def own(self, name: str) -> None:
        """Count a file in that was written into the folder by other means."""
        path = self.folder / name
        if not self._is_there(name, path):
            self._remember(name, path, self._hash(name, path))
        self.names[name] = self._known[name]["sha256"]

    def write(self, name: str, text: str) -> None:
        """Write a small file of the bundle's own; one that says the same is left alone."""
        path = self.folder / name
        if not path.is_file() or path.read_text() != text:
            write_atomically(path, text)
        self.own(name)

    def _place(self, name: str, source: Path, target: Path) -> str:
        """Copy or link; returns the SHA-256."""
        part = target.with_name(f"{target.name}.part")
        part.unlink(missing_ok=True)
        if self._how == "copy":
            sha256 = self._hash(name, source, part)
            stat = source.stat()
            os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        elif self._how == "symlink":
            part.symlink_to(source)
            sha256 = self._hash(name, source)
        else:
            try:
                part.hardlink_to(source)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise EnvironmentProblem(
                    f"{source} is on another disk than {self.folder}: it cannot be hard-linked.",
                    hint="--files copy, or symlink; or --out on that disk",
                ) from error
            sha256 = self._hash(name, source)
        part.replace(target)
        return sha256

    def _hash(self, name: str, source: Path, copy: Path | None = None) -> str:
        """SHA-256 of a file, which is copied on the way if asked."""
        digest, done, total = hashlib.sha256(), 0, source.stat().st_size
        with source.open("rb") as file, open(copy or os.devnull, "wb") as out:  # noqa: PTH123
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                if copy is not None:
                    out.write(piece)
                    self.copied_bytes += len(piece)
                done += len(piece)
                self._progress(done, total, f"{name} {done / 1e9:.2f} of {total / 1e9:.2f} GB")
        return digest.hexdigest()

    def _is_there(self, name: str, source: Path) -> bool:
        """Whether the bundle has this very file, as far as sizes and times tell."""
        known, target = self._known.get(name), self.folder / name
        if known is None or not target.is_file():
            return False
        return bool(known["stamp"] == _stamp(source) == _stamp(target)) and (
            target == source or (target.is_symlink() == (self._how == "symlink"))
        )

    def _remember(self, name: str, source: Path, sha256: str) -> None:
        self._known[name] = {"stamp": _stamp(source), "sha256": sha256}
        write_atomically(self.folder / STATE, json.dumps(self._known, indent=1) + "\n")


def files_under(prefix: str, path: Path) -> dict[str, Path]:
    """Files of a folder, or the one file, by their names in the bundle. Hidden ones stay."""
    if path.is_file():
        return {f"{prefix}/{path.name}": path}
    if not path.is_dir():
        raise InputError(f"There is no {path} to bundle.", hint="--model PATH, --data PATH")
    found = sorted(one for one in path.rglob("*") if one.is_file())
    relative = {one: one.relative_to(path) for one in found}
    return {
        f"{prefix}/{name.as_posix()}": one
        for one, name in relative.items()
        if not any(part.startswith(".") for part in name.parts) and one.suffix != ".part"
    }


def write_manifest(files: Files, facts: Mapping[str, Any]) -> list[str]:
    """List every file with size and hash; returns the names of others that were removed.

    Raises InputError for a file in the folder that is none of the bundle's.
    """
    removed = []
    for path in sorted(files.folder.rglob("*")):
        name = path.relative_to(files.folder).as_posix()
        if path.is_dir() or name in files.names or name in (_SUMS, _MANIFEST, STATE):
            continue
        if name in files._known or path.suffix in (".part", ".tmp"):
            path.unlink()
            removed.append(name)
        else:
            raise InputError(
                f"{path} is none of the bundle's files.", hint="another --out, or move it away"
            )
    listed = [
        {
            "path": name,
            "bytes": (files.folder / name).stat().st_size,
            "sha256": files.names[name],
        }
        for name in sorted(files.names)
    ]
    manifest = {"schema": 1, **facts, "files": listed}
    files.write(_MANIFEST, json.dumps(manifest, indent=1) + "\n")
    sums = [f"{files.names[name]}  {name}\n" for name in sorted(files.names)]
    write_atomically(files.folder / _SUMS, "".join(sums))
    return removed


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
