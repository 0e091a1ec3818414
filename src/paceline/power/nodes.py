"""Power of other nodes: files power-<host>.jsonl in a folder that all of them see.

`paceline power --out DIR` writes one on each node; whatever else writes lines with `unix_s`,
`host`, `device`, `scope` and `power_w` is read as well. The files only grow, and are read from
where the last look ended.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from paceline.power.settings import PowerSettings

__all__ = ["NodeFiles", "file_name", "open_nodes"]

# An older reading says nothing of what begins now.
_SINCE_S = 15.0


def file_name(host: str) -> str:
    """The file of a host."""
    return f"power-{host}.jsonl"


def open_nodes(settings: PowerSettings, own_host: str) -> NodeFiles | None:
    """The other nodes' files that the settings name, from now on; None where they name none."""
    if settings.nodes is None:
        return None
    return NodeFiles(settings.nodes, own_host=own_host, since_unix_s=time.time() - _SINCE_S)


class NodeFiles:
    """The files of the hosts in a folder, but this host's own."""

    def __init__(self, folder: Path, *, own_host: str, since_unix_s: float) -> None:
        self._folder = folder
        self._own = file_name(own_host)
        self._since_unix_s = since_unix_s
        self._offsets: dict[Path, int] = {}
        self.num_bad_lines = 0

    def poll(self) -> list[dict[str, Any]]:
        """Readings that have come since the last call."""
        rows = []
        for path in sorted(self._folder.glob("power-*.jsonl")):
            if path.name != self._own:
                rows += self._read(path)
        return rows

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
        except OSError:  # a node that is gone is silent, which the cap's watch counts
            return []
        # A line that is still being written is read when it is whole.
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        rows = []
        for line in whole.splitlines():
            row = _row(line)
            if row is None:
                self.num_bad_lines += 1
            elif row["unix_s"] >= self._since_unix_s:
                rows.append({"host": path.stem.removeprefix("power-"), **row})
        return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("device"), str):
        return None
    for name in ("unix_s", "power_w"):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not math.isfinite(value):
            return None
    return row
