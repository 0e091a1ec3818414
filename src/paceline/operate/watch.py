"""A run as its directory shows it at this moment, from files alone.

It needs no more than to see the directory: any node will do, while the run goes on and after it.
What is not there is None. A run is

    WAITING       no manifest yet
    RUNNING       and gave a sign of life lately
    SILENT        says RUNNING, and gave no sign for a while: killed, or its node is gone
    COMPLETE, INCOMPLETE, INTERRUPTED     as the manifest has it
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paceline import power
from paceline.power import Board
from paceline.rundir import LIVE_NAME, RunDir

__all__ = ["ENDED", "View", "look"]

ENDED = frozenset({"COMPLETE", "INCOMPLETE", "INTERRUPTED", "SILENT"})
# A row of a run on a thousand replicas has a hundred thousand bytes.
_TAIL_BYTES, _MOST_TAIL_BYTES, _TAIL_ROWS = 1 << 16, 1 << 23, 16
# Ten signs of life; a node whose clock is off by less is still alive.
_SILENT_AFTER_S = 15.0
_STUCK_AFTER_S = 60.0
_RATE_OVER_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is known of a run at this moment. Rates are tokens/s, of the last seconds and so far."""

    path: str
    status: str
    benchmark: str | None = None
    scenario: str | None = None
    engine: str | None = None
    test: str | None = None
    stage: str | None = None
    fraction: float | None = None
    age_s: float | None = None
    elapsed_s: float | None = None
    issued: int | None = None
    answered: int | None = None
    eta_s: float | None = None
    tokens_per_second: float | None = None
    tokens_per_second_mean: float | None = None
    live_sequences: int | None = None
    waiting_sequences: int | None = None
    kv_used_fraction: float | None = None
    preemptions: int | None = None
    latencies_ms: Mapping[str, float] | None = None
    parts: tuple[Mapping[str, Any], ...] = ()
    slowest: str | None = None
    power_w: float | None = None
    power_readings: tuple[Mapping[str, Any], ...] = ()
    power_unread: tuple[str, ...] = ()
    cap: Mapping[str, Any] | None = None
    tests: Mapping[str, str] | None = None
    verdict: Mapping[str, Any] | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def look(path: Path) -> View:
    """The run in `path` now. Raises RunDirError when its manifest is damaged."""
    if not (path / "manifest.json").exists():
        return View(path=str(path), status="WAITING")
    manifest = RunDir.open(path).read_manifest()
    live = _live(path)
    status = str(manifest["status"])
    age_s = None
    if status == "RUNNING":
        age_s = _age_s(path, live)
        status = "SILENT" if _is_dead(live, age_s) else status
    tests = manifest.get("tests", {})
    test = _current_test(tests, live if status == "RUNNING" else {})
    facts = _test_facts(path, test, tests.get(test, {}), is_over=status in ENDED)
    config = manifest.get("config", {})
    is_running = status == "RUNNING"
    return View(
        path=str(path),
        status=status,
        benchmark=config.get("benchmark"),
        scenario=config.get("scenario"),
        engine=config.get("engine"),
        test=test,
        stage=live.get("stage") if is_running else None,
        fraction=live.get("fraction") if is_running else None,
        age_s=age_s,
        tests={name: str(one.get("status")) for name, one in tests.items()},
        verdict=RunDir.open(path).read_verdict() if status == "COMPLETE" else None,
        error=manifest.get("error", {}).get("message"),
        cap=live.get("cap") or manifest.get("power", {}).get("cap"),
        **facts,
        **_power(path, test, live if is_running else {}, tests.get(test, {}), manifest),
    )


def _current_test(tests: Mapping[str, Any], live: Mapping[str, Any]) -> str | None:
    named = live.get("test")
    if isinstance(named, str):
        return named
    return list(tests)[-1] if tests else None


def _test_facts(
    path: Path, test: str | None, facts: Mapping[str, Any], *, is_over: bool
) -> dict[str, Any]:
    """Figures of the test from its timeline; of one that is over, what its process said last."""
    rows = [] if test is None else _tail(path / test / "timeline.jsonl")
    rows = [row for row in rows if "elapsed_s" in row and "made" in row]
    if facts.get("status") == "COMPLETE" and "window_s" in facts:
        window_s = facts["window_s"][1] - facts["window_s"][0]
        return {
            "elapsed_s": facts["elapsed_s"],
            "tokens_per_second_mean": facts["tokens"] / window_s if window_s > 0 else None,
            "answered": rows[-1]["answered"] if rows and is_over else None,
            "preemptions": rows[-1].get("preemptions") if rows else None,
        }
    if not rows:
        return {}
    last = rows[-1]
    before = next((r for r in rows if last["elapsed_s"] - r["elapsed_s"] <= _RATE_OVER_S), last)
    parts = tuple(last.get("parts", ()))
    return {
        **{name: last.get(name) for name in ("elapsed_s", "issued", "answered")},
        **{name: last.get(name) for name in ("live_sequences", "waiting_sequences")},
        **{name: last.get(name) for name in ("kv_used_fraction", "preemptions")},
        "eta_s": _eta_s(last),
        "tokens_per_second": _rate(before, last),
        "tokens_per_second_mean": _rate({"elapsed_s": 0.0, "made": 0}, last),
        "latencies_ms": {
            name.removesuffix("_ms"): value
            for name, value in last.items()
            if name.startswith(("ttft_p", "tpot_p"))
        },
        "parts": parts,
        "slowest": _slowest(parts, tuple(before.get("parts", ()))),
    }


def _rate(before: Mapping[str, Any], last: Mapping[str, Any]) -> float | None:
    seconds = float(last["elapsed_s"] - before["elapsed_s"])
    made = float(last["made"] - before["made"])
    return max(0.0, made) / seconds if seconds > 0 else None


def _eta_s(row: Mapping[str, Any]) -> float | None:
    """Time to the last answer at the samples' pace so far; unknown where samples still come."""
    fresh = row["answered"] - row["resumed"]
    if fresh <= 0 or any(name.startswith("ttft_p") for name in row):
        return None
    return float(row["issued"] - row["answered"]) * float(row["elapsed_s"]) / float(fresh)


def _slowest(parts: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> str | None:
    """The copy or server that made the fewest tokens of late; one that is away comes first."""
    if len(parts) < 2:
        return None
    away = [str(part["name"]) for part in parts if not part.get("is_up", True)]
    if away:
        return away[0]
    earlier = {part["name"]: part for part in before}
    made = {
        str(part["name"]): part["tokens"] - (earlier.get(part["name"], {}).get("tokens") or 0)
        for part in parts
        if part.get("tokens") is not None
    }
    return min(made, key=lambda name: made[name]) if len(made) == len(parts) else None


def _power(
    path: Path,
    test: str | None,
    live: Mapping[str, Any],
    facts: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """The newest readings; after the run, the last of the test and its mean."""
    known = live.get("power")
    if known is not None:
        return {
            "power_w": known["total_w"],
            "power_readings": tuple(known["readings"]),
            "power_unread": tuple(known["unread"]),
        }
    drawn = facts.get("power", {})
    board = Board()
    for row in [] if test is None else _tail(path / test / "power.jsonl"):
        if "device" in row and "power_w" in row and "unix_s" in row:
            board.put(str(row.get("host", "")), row["unix_s"], row)
    last_s = board.newest_s()
    return {
        "power_w": drawn.get("mean_w"),
        "power_readings": () if last_s is None else tuple(board.fresh(last_s).values()),
        "power_unread": tuple(manifest.get("power", {}).get("unread", ())),
    }


def _live(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / LIVE_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _age_s(path: Path, live: Mapping[str, Any]) -> float:
    """Seconds since the run gave a sign of life; never less than none, whatever clocks say."""
    signs = [float(live["unix_s"])] if "unix_s" in live else []
    try:
        signs.append((path / "manifest.json").stat().st_mtime)
    except OSError:
        signs.append(0.0)
    return max(0.0, time.time() - max(signs))


def _is_dead(live: Mapping[str, Any], age_s: float) -> bool:
    """Whether the run's process is gone: known on its own host, guessed from afar."""
    pid = live.get("pid")
    if isinstance(pid, int) and live.get("host") == power.host_name():
        # In a container of that name the number may be another's: then age alone tells.
        return not Path(f"/proc/{pid}").exists() or age_s > _STUCK_AFTER_S
    return age_s > _SILENT_AFTER_S


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of a file of JSON lines; a line that is being written is left out."""
    try:
        with path.open("rb") as file:
            size, tail = file.seek(0, os.SEEK_END), _TAIL_BYTES
            while True:
                start = max(0, size - tail)
                file.seek(start)
                lines = file.read().split(b"\n")[1 if start else 0 : -1]
                if not start or len(lines) >= _TAIL_ROWS or tail >= _MOST_TAIL_BYTES:
                    break
                tail *= 8
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
