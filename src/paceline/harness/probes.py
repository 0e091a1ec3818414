"""What a search tried, and what came of it: the account that is kept while it goes on.

probes.json   the tests so far, which a search that was broken off goes on from
probes.txt    the same for people, a line a test
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import RunDirError
from paceline.rundir import write_atomically

__all__ = ["Outcome", "Probe", "latencies_text", "probe_text", "read_probes", "write_probes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one test of a search came to. Rates in samples/s; latencies by name, in ms.

    `result` is LoadGen's word, `holds` whether the rate is one to go up from.
    """

    result: str
    holds: bool
    samples_per_second: float
    duration_s: float
    num_queries: int
    latencies_ms: Mapping[str, float | None]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One test of a search: its number, its load, and what came of it."""

    number: int
    target_qps: float | None
    min_duration_ms: int
    min_queries: int
    outcome: Outcome


def read_probes(folder: Path) -> list[Probe]:
    """The tests of a search so far, in order. Raises RunDirError when they cannot be read."""
    path = folder / "probes.json"
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())["probes"]
        return [Probe(**(row | {"outcome": Outcome(**row["outcome"])})) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirError(
            f"{path} cannot be read: {error}.", hint="start a new run, or remove the file"
        ) from error


def write_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Keep the account. Raises EnvironmentProblem when the disk will not take it."""
    rows = [dataclasses.asdict(probe) for probe in probes]
    write_atomically(folder / "probes.json", json.dumps({"probes": rows}, indent=2) + "\n")
    write_atomically(folder / "probes.txt", "".join(f"{probe_text(probe)}\n" for probe in probes))


def probe_text(probe: Probe) -> str:
    """One test of a search, in a line."""
    outcome = probe.outcome
    done = f"{outcome.num_queries} samples in {outcome.duration_s:.1f} s"
    if probe.target_qps is None:
        return (
            f"{probe.number:3}  Offline                      "
            f"{outcome.samples_per_second:.4g} samples/s   {done}"
        )
    text = f"{probe.number:3}  {outcome.result:7}  {probe.target_qps:>10g} samples/s   {done}"
    text += "".join(f"   {found}" for found in latencies_text(outcome))
    return text if outcome.holds else f"{text}   {outcome.reason}"


def latencies_text(outcome: Outcome) -> list[str]:
    """Each latency with its percentile, as words."""
    found = []
    for name, value in outcome.latencies_ms.items():
        what, percentile, _ = name.split("_")
        if value is not None:
            found.append(f"{percentile} {what.upper()} {value:,.1f} ms")
    return found
