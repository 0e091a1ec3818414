"""The tarball of a tree, the same bytes for the same tree, and its SHA-256.

Names are sorted, owners and times fixed, and the compression writes no name and no time, so that
whoever builds the same tree can say that it is the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from paceline.rundir import write_atomically

__all__ = ["tarball", "write_tarball"]

_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_LEVEL = 9


def tarball(files: Mapping[str, bytes], *, mtime_s: int) -> bytes:
    """A .tar.gz of `files`; every entry has the time `mtime_s`."""
    folders = {
        str(parent)
        for name in files
        for parent in PurePosixPath(name).parents
        if str(parent) != "."
    }
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted([*folders, *files]):
            entry = tarfile.TarInfo(name)
            entry.mtime = mtime_s
            entry.mode = _FOLDER_MODE if name in folders else _FILE_MODE
            if name in folders:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(files[name])
                tar.addfile(entry, io.BytesIO(files[name]))
    packed = io.BytesIO()
    with gzip.GzipFile(
        filename="", fileobj=packed, mode="wb", compresslevel=_LEVEL, mtime=0
    ) as compressed:
        compressed.write(plain.getvalue())
    return packed.getvalue()


def write_tarball(path: Path, files: Mapping[str, bytes], *, mtime_s: int) -> str:
    """Write the tarball and, beside it, what `sha256sum -c` reads; returns the SHA-256."""
    content = tarball(files, mtime_s=mtime_s)
    sha256 = hashlib.sha256(content).hexdigest()
    write_atomically(path, content)
    write_atomically(path.with_name(f"{path.name}.sha256"), f"{sha256}  {path.name}\n")
    return sha256
