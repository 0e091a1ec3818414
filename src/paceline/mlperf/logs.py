"""LoadGen's three logs as typed records, however damaged they are.

    read_detail    mlperf_log_detail.txt     one record a line: settings, results, errors
    read_summary   mlperf_log_summary.txt    the text for people, of LoadGen 5.1 or 6.x
    read_accuracy  mlperf_log_accuracy.json  what each logged sample answered, as token ids

A run that was killed, a disk that filled up or a log that was truncated for submission
leaves files that stop in the middle. What can be read is read; what cannot is listed in
`malformed` with its line, so that a checker decides what it means. Only a file that cannot
be opened is an error.

The accuracy log's parser is in `accuracy_log`; its names are exported here, where callers
look for logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from paceline.mlperf.accuracy_log import (
    AccuracyLog,
    Finding,
    Malformed,
    TokenLists,
    open_log,
    read_accuracy,
)

__all__ = [
    "AccuracyLog",
    "DetailLog",
    "Finding",
    "Malformed",
    "Record",
    "Summary",
    "TokenLists",
    "read_accuracy",
    "read_detail",
    "read_summary",
]

_PREFIX = b":::MLLOG "
# loaded_qsl_set, the longest record of a sound log, takes 150 KB for 24,576 samples.
_LINE_BYTES_MAX = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of the detail log. `time_ms` counts from the start of the test."""

    key: str
    value: object
    time_ms: float | None
    is_error: bool
    is_warning: bool
    line_no: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DetailLog:
    """A detail log. LoadGen repeats some keys; like the official checker, `get` takes the first."""

    path: Path
    records: tuple[Record, ...]
    malformed: tuple[Malformed, ...]
    _first: dict[str, object] = field(repr=False)

    def get(self, key: str, default: object = None) -> object:
        """The value of the first record of that key."""
        return self._first.get(key, default)

    def __contains__(self, key: str) -> bool:
        return key in self._first

    @property
    def errors(self) -> list[Record]:
        """Records that LoadGen marked as errors."""
        return [record for record in self.records if record.is_error]

    @property
    def warnings(self) -> list[Record]:
        """Records that LoadGen marked as warnings."""
        return [record for record in self.records if record.is_warning]

    @property
    def result_validity(self) -> str | None:
        """ "VALID" or "INVALID"; None in accuracy mode and in a log that ends too soon."""
        value = self.get("result_validity")
        return value if isinstance(value, str) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A summary log. An accuracy run's has the two counts only; its other fields are None.

    `satisfied` has LoadGen's constraints ("Min duration": True, ...), `statistics` the lines
    of "Additional Stats" under the words of LoadGen 6.x, `parameters` the settings at the end.
    """

    path: Path
    sut_name: str | None
    scenario: str | None
    mode: str | None
    result: str | None
    samples_per_second: float | None
    tokens_per_second: float | None
    satisfied: dict[str, bool]
    statistics: dict[str, float]
    parameters: dict[str, float]
    num_warnings: int | None
    num_errors: int | None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number, line); None for a line of more than 16 MiB, which no LoadGen writes."""
    line_no = 1
    while line := file.readline(_LINE_BYTES_MAX):
        if len(line) < _LINE_BYTES_MAX or line.endswith(b"\n"):
            yield line_no, line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(_LINE_BYTES_MAX)
            yield line_no, None
        line_no += 1


def read_detail(path: Path, *, unread: tuple[str, ...] = ()) -> DetailLog:
    """Read mlperf_log_detail.txt, line by line.

    Records of the keys in `unread` are passed over: `loaded_qsl_set` has 24,576 indices, nine
    tenths of a log, and few readers ask for it.

    Raises
        DataError  the file cannot be opened. A line that is no record never raises: it is
                   listed in `malformed`.
    """
    records: list[Record] = []
    malformed: list[Malformed] = []
    first: dict[str, object] = {}
    passed_over = tuple(_PREFIX + f'{{"key": "{key}", '.encode() for key in unread)
    with open_log(path) as file:
        for line_no, line in _lines(file):
            if line is not None and (not line.strip() or line.startswith(passed_over)):
                continue
            record = _record(line, line_no)
            if isinstance(record, Malformed):
                malformed.append(record)
            else:
                records.append(record)
                first.setdefault(record.key, record.value)
    return DetailLog(path=path, records=tuple(records), malformed=tuple(malformed), _first=first)


def _record(line: bytes | None, line_no: int) -> Record | Malformed:
    if line is None:
        return Malformed(line_no=line_no, detail=f"longer than {_LINE_BYTES_MAX} bytes")
    if not line.startswith(_PREFIX):
        return Malformed(line_no=line_no, detail='does not begin with ":::MLLOG "')
    try:
        entry = json.loads(line[len(_PREFIX) :].decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        return Malformed(line_no=line_no, detail=f"not JSON: {error}")
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        return Malformed(line_no=line_no, detail="no key")
    metadata = entry.get("metadata")
    flags = metadata if isinstance(metadata, dict) else {}
    time_ms = entry.get("time_ms")
    return Record(
        key=entry["key"],
        value=entry.get("value"),
        time_ms=float(time_ms) if isinstance(time_ms, int | float) else None,
        is_error=flags.get("is_error") is True,
        is_warning=flags.get("is_warning") is True,
        line_no=line_no,
    )


_SATISFIED = re.compile(r"^  (.+?) satisfied ?: (Yes|NO)$")
_NUMBER = re.compile(r"^(.+?)\s*: (-?[\d.]+(?:e[+-]?\d+)?)$")
_COUNTED = re.compile(r"^(No|\d+) (warning|error)s? encountered", re.IGNORECASE)


def read_summary(path: Path) -> Summary:
    """Read mlperf_log_summary.txt of LoadGen 5.1 or 6.x, Offline or Server.

    Raises
        DataError  the file cannot be opened. A line that is not understood is passed over:
                   the text is for people, and the detail log has the same facts.
    """
    with open_log(path) as file:
        lines = file.read(_LINE_BYTES_MAX).decode("utf-8", errors="replace").splitlines()
    words: dict[str, str] = {}
    satisfied: dict[str, bool] = {}
    numbers: dict[str, dict[str, float]] = {"results": {}, "statistics": {}, "parameters": {}}
    counts: dict[str, int] = {}
    section = "results"
    for line in lines:
        if line.startswith(("Additional Stats", "Test Parameters Used")):
            section = "statistics" if line.startswith("Additional") else "parameters"
        elif match := _SATISFIED.match(line):
            satisfied[match[1]] = match[2] == "Yes"
        elif match := _COUNTED.match(line):
            counts[match[2].lower()] = 0 if match[1].lower() == "no" else int(match[1])
        elif match := _NUMBER.match(line):
            # 5.1 says "Time to Output Token" where 6.0 and later say "per".
            name = re.sub(r"(?i)(time) to (output token)", r"\1 per \2", match[1])
            numbers[section].setdefault(name, float(match[2]))
        elif section == "results" and " : " in line:
            name, _, value = line.partition(" : ")
            words.setdefault(name.strip(), value.strip())
    results = numbers["results"]
    return Summary(
        path=path,
        sut_name=words.get("SUT name"),
        scenario=words.get("Scenario"),
        mode=words.get("Mode"),
        result=words.get("Result is"),
        samples_per_second=results.get(
            "Samples per second", results.get("Completed samples per second")
        ),
        tokens_per_second=results.get(
            "Tokens per second", results.get("Completed tokens per second")
        ),
        satisfied=satisfied,
        statistics=numbers["statistics"],
        parameters=numbers["parameters"],
        num_warnings=counts.get("warning"),
        num_errors=counts.get("error"),
    )
