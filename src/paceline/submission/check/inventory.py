"""What lies in a tree, seen once, without following a link or opening a file.

Everything else in the checker asks the inventory and opens only what it calls a file: a link
out of the tree, a pipe, a socket or a device is never read, and a directory that is its own
ancestor cannot be entered. Files are opened without following a link and without waiting.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Entry", "Inventory", "Unreadable", "take_inventory"]

Kind = Literal["file", "dir", "link", "special"]
_DEPTH_MAX = 40
_CHUNK_BYTES = 1 << 20


class Unreadable(Exception):
    """A file that is missing, too large, or not what it must be. The message is for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One name in a directory. `size` is in bytes; `target` is where a link points."""

    kind: Kind
    size: int = 0
    target: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """The entries below `root` by relative path; `children` of a directory by name, sorted.

    `unread` are directories that could not be listed, or lie too deep to be of any use.
    """

    root: Path
    entries: dict[str, Entry]
    children: dict[str, tuple[str, ...]]
    unread: dict[str, str]

    def kind(self, path: str) -> Kind | None:
        """What lies at `path`; None when nothing does."""
        entry = self.entries.get(path)
        return None if entry is None else entry.kind

    def is_file(self, path: str) -> bool:
        """Whether an ordinary file lies at `path`."""
        return self.kind(path) == "file"

    def is_dir(self, path: str) -> bool:
        """Whether a directory, and not a link to one, lies at `path`."""
        return self.kind(path) == "dir"

    def dirs(self, path: str) -> list[str]:
        """Names of the directories in a directory."""
        return [name for name in self.children.get(path, ()) if self.is_dir(_join(path, name))]

    def files(self, path: str) -> list[str]:
        """Names of the ordinary files in a directory."""
        return [name for name in self.children.get(path, ()) if self.is_file(_join(path, name))]

    def size(self, path: str) -> int:
        """Bytes of the file at `path`; 0 when there is none."""
        entry = self.entries.get(path)
        return entry.size if entry is not None and entry.kind == "file" else 0

    def read(self, path: str, *, bytes_max: int) -> bytes:
        """The bytes of a file. Raises Unreadable, as `stream` does."""
        return b"".join(self.stream(path, bytes_max=bytes_max))

    def stream(self, path: str, *, bytes_max: int) -> Iterator[bytes]:
        """The bytes of a file, a megabyte at a time.

        Raises
            Unreadable  no ordinary file of at most `bytes_max` bytes is there, or it cannot
                        be opened.
        """
        entry = self.entries.get(path)
        if entry is None:
            raise Unreadable("is missing")
        if entry.kind != "file":
            raise Unreadable(f"is no ordinary file ({entry.kind})")
        if entry.size > bytes_max:
            raise Unreadable(f"has {entry.size:,} bytes; at most {bytes_max:,} are read")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            with os.fdopen(os.open(self.root / path, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise Unreadable("is no ordinary file")
                left = bytes_max
                while chunk := file.read(min(_CHUNK_BYTES, left)):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from error

    def read_text(self, path: str, *, bytes_max: int = _CHUNK_BYTES) -> str:
        """The text of a file. Raises Unreadable, also for text that is not UTF-8."""
        try:
            return self.read(path, bytes_max=bytes_max).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(f"is not UTF-8 text (byte {error.start})") from error

    def read_object(self, path: str) -> dict[str, object]:
        """The JSON object in a file.

        Raises
            Unreadable  no such file; not JSON (NaN is not), not an object, or a key given twice,
                        of which every reader takes another.
        """
        text = self.read_text(path)
        try:
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"is not sound JSON: {error}") from error
        if not isinstance(value, dict):
            raise Unreadable(f"holds a JSON {type(value).__name__} where an object belongs")
        return value


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value: dict[str, object] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key[:80]!r} stands twice")
        value[key] = item
    return value


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def take_inventory(root: Path, *, skip: tuple[str, ...] = ()) -> Inventory:
    """List everything below `root`, but for the names in `skip` directly in it."""
    entries: dict[str, Entry] = {}
    children: dict[str, tuple[str, ...]] = {}
    unread: dict[str, str] = {}
    waiting = [("", 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            with os.scandir(root / path) as found:
                listed = sorted(found, key=lambda item: item.name)
        except OSError as error:
            unread[path] = f"cannot be listed ({error.strerror})"
            continue
        if depth > _DEPTH_MAX:
            unread[path] = f"lies more than {_DEPTH_MAX} directories deep"
            continue
        if not path:
            listed = [item for item in listed if item.name not in skip]
        children[path] = tuple(item.name for item in listed)
        for item in listed:
            name = _join(path, item.name)
            entries[name] = entry = _entry(item)
            if entry.kind == "dir":
                waiting.append((name, depth + 1))
    return Inventory(root=root, entries=entries, children=children, unread=unread)


def _entry(item: os.DirEntry[str]) -> Entry:
    try:
        if item.is_symlink():
            return Entry(kind="link", target=str(Path(item.path).readlink()))
        if item.is_dir(follow_symlinks=False):
            return Entry(kind="dir")
        if item.is_file(follow_symlinks=False):
            return Entry(kind="file", size=item.stat(follow_symlinks=False).st_size)
    except OSError:
        pass
    return Entry(kind="special")
