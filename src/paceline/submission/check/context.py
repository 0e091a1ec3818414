"""One result of a submission: its names, its paths, and what its division asks.

A result is a scenario directory below results/. `kind` is the scenario's canonical name and
`benchmark` the official one; the directory's own names are in `scenario` and `model`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from paceline.errors import DataError
from paceline.mlperf.logs import AccuracyLog, DetailLog, read_accuracy, read_detail
from paceline.mlperf.rules import ROUNDS
from paceline.mlperf.tree_rules import TreeLayout
from paceline.submission.check.inventory import Inventory, Unreadable

__all__ = [
    "DETAIL_BYTES_MAX",
    "Facts",
    "Outcome",
    "ResultDir",
    "RunLog",
    "read_run_log",
    "read_token_log",
    "round_of",
]

# A sound detail log has 170 KB, the largest of a submission may have 50 MB; one of more than
# this, or of more lines, is no log that LoadGen writes for this benchmark.
DETAIL_BYTES_MAX = 1 << 24
_DETAIL_LINES_MAX = 100_000
_UNREAD = ("loaded_qsl_set", "loadgen_file_sha1", "loadgen_git_log_message")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultDir:
    """Where a result lies. Paths are relative to the tree."""

    division: str
    submitter: str
    system: str
    model: str
    scenario: str
    benchmark: str
    kind: str
    layout: TreeLayout

    @property
    def base(self) -> str:
        """The submitter's directory."""
        return f"{self.division}/{self.submitter}"

    @property
    def path(self) -> str:
        """The scenario directory, which names the result."""
        return f"{self.base}/results/{self.system}/{self.model}/{self.scenario}"

    def place(self, template: str) -> str:
        """A path of the layout, for this result."""
        return f"{self.base}/" + self.layout.place(
            template, system=self.system, benchmark=self.model, scenario=self.scenario
        )

    @property
    def strict(self) -> bool:
        """Whether the division enforces targets, tests and required scenarios."""
        return self.division != "open"

    @property
    def loadgen_scenario(self) -> str:
        """LoadGen's word for the scenario: Interactive is a Server run with other limits."""
        return "Server" if self.kind == "Interactive" else self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """A detail log with typed access: None for what is missing or of another type."""

    path: str
    log: DetailLog

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self.log.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:
            return None

    def integer(self, key: str) -> int | None:
        """A whole number, exactly: seeds have 64 bits."""
        value = self.log.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, key: str) -> str | None:
        """A string."""
        value = self.log.get(key)
        return value if isinstance(value, str) else None

    def flag(self, key: str) -> bool:
        """True when the log says true."""
        return self.log.get(key) is True

    @property
    def audit(self) -> bool:
        """Whether LoadGen found an audit.config and took its settings."""
        return any(
            "audit" in str(record.value).lower()
            for record in self.log.records
            if record.is_warning or record.key == "generic_message"
        )


@dataclass(kw_only=True, slots=True)
class Facts:
    """What a result's checks learn of it, for summary.csv and the checks that follow."""

    round_name: str | None = None
    metric: float | None = None
    tokens_per_sample: float | None = None
    accuracy: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A checked result: whether it passed by itself, and what was learnt of it."""

    result: ResultDir
    passed: bool
    facts: Facts
    weight_data_types: str = ""
    has_power: bool = False


def round_of(log: RunLog) -> str | None:
    """The round whose three seeds the log has; None when it is no known round's."""
    found = tuple(log.integer(f"effective_{name}_rng_seed") for name in _SEEDS)
    for name, rules in ROUNDS.items():
        seeds = rules.seeds
        if found == (seeds.qsl, seeds.sample_index, seeds.schedule):
            return name
    return None


_SEEDS = ("qsl", "sample_index", "schedule")


def read_run_log(inventory: Inventory, path: str) -> RunLog:
    """A detail log. Raises Unreadable when there is none, or nothing of one in the file."""
    data = inventory.read(path, bytes_max=DETAIL_BYTES_MAX)
    if data.count(b"\n") > _DETAIL_LINES_MAX:
        raise Unreadable(f"has more than {_DETAIL_LINES_MAX:,} lines")
    try:
        log = read_detail(inventory.root / path, unread=_UNREAD)
    except (DataError, ValueError, OverflowError) as error:
        raise Unreadable(f"is no log of LoadGen's: {error}") from error
    if not log.records:
        raise Unreadable("holds no record of LoadGen's")
    return RunLog(path=path, log=log)


def read_token_log(
    inventory: Inventory, path: str, *, entries_max: int, bytes_max: int
) -> tuple[AccuracyLog, str]:
    """An accuracy log, and the type of its ids: int32, int64, float32 or "mixed".

    The type is what makes the length of each answer its token_count; the ids of a log that is
    "mixed" are read as int32. Raises Unreadable for a file of more entries than it can have.
    """
    braces = sum(chunk.count(b"}") for chunk in inventory.stream(path, bytes_max=bytes_max))
    if braces > 2 * entries_max + 100:
        raise Unreadable(f"holds {braces:,} entries; at most {entries_max:,} belong there")
    full = inventory.root / path
    try:
        log = read_accuracy(full)
        if log.token_count is None:
            return log, "int32"
        widths = {name for name, n in _WIDTHS if (log.tokens.lens == n * log.token_count).any()}
        if widths == {"int64"}:
            return read_accuracy(full, dtype="int64"), "int64"
        flat = log.tokens.flat
        if widths == {"int32"} and len(flat) and bool((flat >= _FLOAT_BITS).all()):
            return read_accuracy(full, dtype="float32"), "float32"
    except (DataError, ValueError, OverflowError) as error:
        raise Unreadable(f"is no log of LoadGen's: {error}") from error
    return log, "mixed" if len(widths) > 1 else "int32"


_WIDTHS = (("int32", 1), ("int64", 2))
# Every float32 from 1.0 on has at least these bits when it is read as an integer.
_FLOAT_BITS = 0x3F800000
