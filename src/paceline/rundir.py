"""A run's directory: the only thing that stages hand each other.

    RUN_DIR/
      manifest.json            what made the run: resolved config, versions, hashes, seeds, host
      verdict.json             what came of it
      recipe.toml              the recipe as given, when there was one
      performance/             LoadGen's logs of the performance test, user.conf
      accuracy/                LoadGen's logs of the accuracy test, user.conf, accuracy.txt,
                               scores.parquet, journal.jsonl
      find_qps/                the search for a rate: probes.txt, probes.json, logs of every probe
      log/<test>.log           what the test's process wrote to its terminal
      log/server-N.log         what a server that the run started wrote to its
      log/kept.json            where the run's servers are, for the processes of its tests
      <test>/timeline.jsonl    a line a second: tokens, samples, the engine's state
      <test>/power.jsonl       a line a reading, where anything tells watts
      .live.json               while the run works: what it is doing, the newest readings

Files are written whole under another name and renamed, so a reader never sees half of one and a
crash leaves the old one. The journal is the exception: it grows by one line for each group of
finished accuracy samples, one write a line, and a line cut short by a crash is recognised by its
checksum and left out.

While a process works on a run directory it holds a lock on it; a second one is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from paceline.errors import EnvironmentProblem, RunDirError

__all__ = [
    "LIVE_NAME",
    "Journal",
    "RunDir",
    "disk_problem",
    "file_sha256",
    "make_folder",
    "write_atomically",
]

SCHEMA = 1
LIVE_NAME = ".live.json"
_TRANSIENT = ("manifest.json", ".lock", LIVE_NAME)
_FSYNC_EVERY_S = 5.0


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing. Raises EnvironmentProblem when the disk will not take it."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_problem(path, error) from error


def disk_problem(path: Path, error: OSError) -> EnvironmentProblem:
    """The error for a write that the disk refused, with what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        run = _run_of(path)
        again = "the same command again" if run is None else f"paceline run --resume {run}"
        return EnvironmentProblem(
            f"The disk that holds {path.parent} is full: {path.name} could not be written.",
            hint=f"free some space, then {again}",
        )
    return EnvironmentProblem(f"Cannot write {path}: {error.strerror}.", hint="check its folder")


def _run_of(path: Path) -> Path | None:
    """The run directory that holds `path`, if one does."""
    return next((p for p in path.parents if (p / "manifest.json").exists()), None)


def make_folder(path: Path) -> None:
    """Make a folder that a user named. Raises EnvironmentProblem when it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"Cannot make the folder {path}: {error.strerror}.", hint="give one that you can write"
        ) from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RunDir:
    """One run directory, created new or opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path) -> RunDir:
        """Make a new run directory and lock it.

        Raises RunDirError when the place is taken or cannot be written.
        """
        cls.require_free(path)
        try:
            (path / "log").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(
                f"Cannot make the run directory {path}: {error.strerror}.",
                hint="give a folder that you can write: --out DIR",
            ) from error
        run = cls(path)
        run.lock()
        return run

    @staticmethod
    def require_free(path: Path) -> None:
        """Raises RunDirError when the place is taken."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            hint = f"another --out, or remove {path}"
            if (path / "manifest.json").exists():
                hint = f"paceline run --resume {path} to finish it, or another --out"
            raise RunDirError(f"{path} exists and is not empty.", hint=hint)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open a run directory to read it. Raises RunDirError when it is none."""
        if not (path / "manifest.json").is_file():
            raise RunDirError(
                f"{path} is not a run directory: it has no manifest.json.",
                hint="give the directory that `paceline run` printed",
            )
        return cls(path)

    def lock(self) -> None:
        """Hold the directory for this process. Raises RunDirError when another one does."""
        try:
            handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirError(
                f"Another process is working on {self.path}.", hint="wait for it, or stop it first"
            ) from error
        except OSError as error:
            raise RunDirError(f"Cannot write {self.path}: {error.strerror}.") from error
        self._lock = handle

    def close(self) -> None:
        """Let the directory go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            (self.path / ".lock").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def test_dir(self, mode: str) -> Path:
        """The folder of one LoadGen test: performance, accuracy or compliance."""
        return self.path / mode

    def make_test_dir(self, mode: str, *, keep: Sequence[str] = ()) -> Path:
        """A test's folder, emptied of an earlier try's files but for those named in `keep`."""
        folder = self.test_dir(mode)
        try:
            folder.mkdir(exist_ok=True)
            for old in folder.iterdir():
                if old.is_file() and old.name not in keep:
                    old.unlink()
        except OSError as error:
            raise RunDirError(f"Cannot write {folder}: {error.strerror}.") from error
        return folder

    def log_path(self, mode: str) -> Path:
        return self.path / "log" / f"{mode}.log"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest. Raises RunDirError when it is damaged or of a newer schema."""
        found = self._read_json("manifest.json")
        if found.get("schema") != SCHEMA:
            raise RunDirError(
                f"{self.path}/manifest.json has schema {found.get('schema')!r}; "
                f"this paceline reads {SCHEMA}.",
                hint="use the paceline that wrote it",
            )
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        self.write_json("manifest.json", {"schema": SCHEMA, **manifest})

    def read_verdict(self) -> dict[str, Any] | None:
        """The verdict, or None when the run has none yet."""
        return self._read_json("verdict.json") if (self.path / "verdict.json").exists() else None

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of every file of the run but the manifest, by path within it, sorted."""
        files = sorted(p for p in self.path.rglob("*") if p.is_file())
        names = {p: p.relative_to(self.path).as_posix() for p in files}
        return {
            name: file_sha256(path)
            for path, name in names.items()
            if name not in _TRANSIENT and not name.endswith(".tmp")
        }

    def changed_files(self, manifest: Mapping[str, Any]) -> list[str]:
        """Files that are not as the manifest has them: changed or gone. Empty when all are."""
        recorded: Mapping[str, str] = manifest.get("files", {})
        found = self.file_hashes()
        return [name for name, sha256 in recorded.items() if found.get(name) != sha256]

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise RunDirError(f"{self.path / name} cannot be read: {error}.") from error
        if not isinstance(value, dict):
            raise RunDirError(f"{self.path / name} is not a JSON object.")
        return value


class Journal:
    """Finished accuracy samples, on disk the moment they are finished.

    One line a group of samples that were computed together:

        <crc32 of the rest, 8 hex digits> [[sample_index, finish_reason, int32 ids as hex], ...]

    A group is on disk whole or not at all, so that a resumed run never splits a batch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn_lines = 0
        self._handle: int | None = None
        self._synced_s = time.monotonic()

    def read(self) -> dict[int, tuple[str, npt.NDArray[np.int32]]]:
        """sample_index -> (finish_reason, token ids). Lines cut short are counted, not used."""
        finished: dict[int, tuple[str, npt.NDArray[np.int32]]] = {}
        self.torn_lines = 0
        for group in self._groups():
            if group is None:
                self.torn_lines += 1
                continue
            for sample_index, finish_reason, hexed in group:
                ids = np.frombuffer(bytes.fromhex(hexed), dtype="<i4")
                finished.setdefault(sample_index, (finish_reason, ids))
        return finished

    def append(self, group: Sequence[tuple[int, str, npt.NDArray[np.int32]]]) -> None:
        """Write one group. Raises EnvironmentProblem when the disk will not take it."""
        body = json.dumps(
            [[index, reason, ids.astype("<i4").tobytes().hex()] for index, reason, ids in group],
            separators=(",", ":"),
        ).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        try:
            if self._handle is None:
                self._handle = self._open()
            written = os.write(self._handle, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced_s > _FSYNC_EVERY_S:
                os.fsync(self._handle)
                self._synced_s = time.monotonic()
        except OSError as error:
            raise disk_problem(self.path, error) from error

    def close(self) -> None:
        if self._handle is not None:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        """Open to append, first ending a line that a crash cut short."""
        handle = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            os.write(handle, b"\n")
        return handle

    def _groups(self) -> Iterator[list[list[Any]] | None]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                checksum, _, body = line.rstrip(b"\n").partition(b" ")
                if checksum == b"%08x" % zlib.crc32(body):
                    yield json.loads(body)
                elif line.strip():
                    yield None
