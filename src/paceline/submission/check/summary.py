"""The summary log of a performance run must say what its detail log says.

People read the summary and programs the detail log; a run whose two logs differ has been edited,
or put together from two runs.
"""

from __future__ import annotations

from paceline.errors import DataError
from paceline.mlperf.logs import Summary, read_summary
from paceline.submission.check.context import RunLog
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Inventory, Unreadable

__all__ = ["check_summary"]

# The summary has two decimals, the detail log six digits.
_ROUNDING = 0.006
_SUMMARY_BYTES_MAX = 1 << 16
_SUMMARY_LINE_MAX = 1000

_SAME = (
    ("Max latency (ns)", "result_max_latency_ns"),
    ("99.00 percentile latency (ns)", "result_99.00_percentile_latency_ns"),
    (
        "99.00 percentile first token latency (ns)",
        "result_first_token_99.00_percentile_latency_ns",
    ),
    (
        "99.00 percentile time per output token (ns)",
        "result_time_per_output_token_99.00_percentile_ns",
    ),
)


def check_summary(inventory: Inventory, path: str, log: RunLog, *, ledger: Ledger) -> None:
    """Compare mlperf_log_summary.txt at `path` with the detail log of the same run."""
    try:
        data = inventory.read(path, bytes_max=_SUMMARY_BYTES_MAX)
        if max(map(len, data.splitlines()), default=0) > _SUMMARY_LINE_MAX:
            raise Unreadable(f"has a line of more than {_SUMMARY_LINE_MAX} bytes")
        summary = read_summary(inventory.root / path)
    except (Unreadable, DataError, ValueError, OverflowError) as error:
        ledger.expect(False, "summary", path, f"The summary {shown(error)}.")
        return
    ledger.expect(
        summary.result is not None, "summary", path, 'The summary has no line "Result is".'
    )
    differing = _differences(summary, log)
    ledger.expect(
        not differing,
        "summary-agrees",
        path,
        f"The summary and the detail log differ: {'; '.join(differing)}.",
    )


def _differences(summary: Summary, log: RunLog) -> list[str]:
    words = (
        ("result", summary.result, log.log.result_validity),
        ("scenario", summary.scenario, log.text("effective_scenario")),
        ("mode", summary.mode, log.text("effective_test_mode")),
    )
    figures = (
        (
            "samples/s",
            summary.samples_per_second,
            _either(log, "result_samples_per_second", "result_completed_samples_per_sec"),
        ),
        (
            "tokens/s",
            summary.tokens_per_second,
            _either(log, "result_tokens_per_second", "result_completed_tokens_per_second"),
        ),
        *((name, summary.statistics.get(name), log.number(key)) for name, key in _SAME),
    )
    found = [
        f"{name} {shown(said)} / {shown(logged)}"
        for name, said, logged in words
        if said is not None and said != logged
    ]
    found += [
        f"{name} {value:g} / {number:g}"
        for name, value, number in figures
        if value is not None and number is not None and not _close(value, number)
    ]
    if summary.num_errors:
        found.append(f"the summary counts {summary.num_errors} errors")
    return found


def _either(log: RunLog, key: str, other: str) -> float | None:
    value = log.number(key)
    return log.number(other) if value is None else value


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= _ROUNDING + 1e-5 * max(abs(a), abs(b))
