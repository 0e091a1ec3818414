"""What a performance test's detail log says: VALID or not, the figures, what missed by how much.

Offline is judged by its duration; Server and Interactive by a percentile, the 99th in MLPerf, of
the time to the first token (TTFT) and of the time per output token (TPOT) as well. The limits are
those that LoadGen applied, and they must be the rule book's.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from paceline.config import RunConfig
from paceline.harness.query_size import lengthened_qps
from paceline.mlperf import rules
from paceline.mlperf.accuracy_log import Finding
from paceline.mlperf.logs import DetailLog, read_detail
from paceline.rundir import RunDir

__all__ = [
    "finding",
    "judge_log",
    "judge_performance",
    "latencies_of",
    "loadgen_errors",
    "one_line",
]

_ERRORS_SHOWN = 3
_NS_PER_MS = 1e-6
_QUERIES_MORE = re.compile(r"Processed (\d+) queries\.[\s\S]*?at least (\d+) more queries")
_LATENCY_KEYS = {
    "ttft": "result_first_token_{percentile}.00_percentile_latency_ns",
    "tpot": "result_time_per_output_token_{percentile}.00_percentile_ns",
}


def judge_performance(config: RunConfig, run: RunDir) -> dict[str, Any]:
    """Read the performance test's detail log."""
    return judge_log(config, read_detail(run.test_dir("performance") / "mlperf_log_detail.txt"))


def judge_log(config: RunConfig, log: DetailLog) -> dict[str, Any]:
    """VALID or not, the figures and the findings of a performance test of the run's scenario."""
    judged = _judge_offline if config.scenario == "Offline" else _judge_server
    figures, findings = judged(config, log)
    result, reason = log.get("result_validity"), log.get("result_invalid_reason")
    valid = finding(
        "performance.valid",
        result == "VALID",
        f"LoadGen says {result}" + (f": {one_line(reason)}" if reason else ""),
    )
    return {
        "result": result if isinstance(result, str) else None,
        **figures,
        "findings": [valid, loadgen_errors(log, "performance"), *findings],
    }


def latencies_of(log: DetailLog, percentile: int) -> dict[str, float | None]:
    """TTFT and TPOT in ms at one of LoadGen's percentiles; None where the log has none."""
    return {
        f"{name}_p{percentile}_ms": _number(log, key.format(percentile=percentile), _NS_PER_MS)
        for name, key in _LATENCY_KEYS.items()
    }


def finding(rule: str, passed: bool, detail: str) -> dict[str, Any]:
    """A checked rule as plain values."""
    return dataclasses.asdict(Finding(rule=rule, passed=passed, detail=detail))


def loadgen_errors(log: DetailLog, test: str) -> dict[str, Any]:
    """The finding about errors that LoadGen logged and lines that it did not write."""
    problems = [f"line {bad.line_no}: {bad.detail}" for bad in log.malformed]
    problems += [one_line(record.value) for record in log.errors]
    shown = "; ".join(problems[:_ERRORS_SHOWN])
    return finding(f"{test}.loadgen_errors", not problems, shown or "LoadGen logged no errors")


def one_line(value: object) -> str:
    return " ".join(str(value).split())


def _judge_offline(
    config: RunConfig, log: DetailLog
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    duration_s = _number(log, "result_max_latency_ns", 1e-9)
    samples_per_second = _number(log, "result_samples_per_second")
    settings = config.loadgen
    long_enough = duration_s is not None and duration_s * 1000 >= settings.min_duration_ms
    duration = f"{duration_s} s, at least {settings.min_duration_ms / 1000:g} s"
    if not long_enough and samples_per_second is not None and duration_s is not None:
        # In samples/s, LoadGen's unit: tokens/s here would make the run hundreds of times longer.
        target_qps = lengthened_qps(settings, samples_per_second, duration_s)
        duration += f"; run it with --set loadgen.target_qps={target_qps:g}"
    figures = {
        "tokens_per_second": _number(log, "result_tokens_per_second"),
        "samples_per_second": samples_per_second,
        "duration_s": duration_s,
    }
    return figures, [finding("performance.duration", long_enough, duration)]


def _judge_server(config: RunConfig, log: DetailLog) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    limits = rules.benchmark(config.benchmark).latency[config.scenario]
    limits_ms = {"ttft": limits.ttft_ms, "tpot": limits.tpot_ms}
    found_ms = latencies_of(log, limits.percentile)
    figures: dict[str, Any] = {
        "tokens_per_second": _number(log, "result_completed_tokens_per_second"),
        "samples_per_second": _number(log, "result_completed_samples_per_sec"),
        "scheduled_samples_per_second": _number(log, "result_scheduled_samples_per_sec"),
        "target_qps": _number(log, "effective_target_qps"),
        "duration_s": _number(log, "generated_query_duration", 1e-9),
        **latencies_of(log, 99),
        **found_ms,
        "latency_percentile": limits.percentile,
        "latency_limits_ms": limits_ms,
    }
    findings = [_duration(config, log, figures["duration_s"])]
    for name, limit_ms in limits_ms.items():
        findings += _latency(log, name, limit_ms, percentile=limits.percentile)
    findings.append(_early_stopping(log))
    return figures, findings


def _duration(config: RunConfig, log: DetailLog, duration_s: float | None) -> dict[str, Any]:
    detail = f"{duration_s} s of load, at least {config.loadgen.min_duration_ms / 1000:g} s"
    return finding("performance.duration", log.get("result_min_duration_met") is True, detail)


def _latency(
    log: DetailLog, name: str, limit_ms: float, *, percentile: int
) -> list[dict[str, Any]]:
    """That the percentile is below its limit, and that LoadGen's limit is the rule book's."""
    found_ms = latencies_of(log, percentile)[f"{name}_p{percentile}_ms"]
    applied_ms = _number(log, f"requested_server_{name}_latency", _NS_PER_MS)
    applied_percentile = _number(log, "requested_server_target_latency_percentile", 100)
    # LoadGen takes a percentile equal to its limit, the official checker does not.
    passed = found_ms is not None and found_ms < limit_ms
    detail = f"p{percentile} {name.upper()} is {_shown(found_ms)} ms, limit {limit_ms:g} ms"
    if found_ms is not None and not passed:
        detail += (
            f": {found_ms / limit_ms:.2f} times the limit; lower loadgen.target_qps, or "
            "--find-qps searches the highest that passes"
        )
    return [
        finding(f"performance.{name}", passed, detail),
        finding(
            f"performance.{name}_limit",
            (applied_ms, applied_percentile) == (limit_ms, percentile),
            f"LoadGen applied {_shown(applied_ms)} ms at percentile {_shown(applied_percentile)}, "
            f"the rules have {limit_ms:g} ms at {percentile}",
        ),
    ]


def _early_stopping(log: DetailLog) -> dict[str, Any]:
    """LoadGen's test that the sample of queries is large enough to believe the percentiles."""
    # LoadGen leaves the other one empty when one was not met.
    results = {name: _believed(log.get(f"early_stopping_{name}_result")) for name in _LATENCY_KEYS}
    said = "; ".join(f"{name.upper()}: {text}" for name, text in results.items() if text)
    met = log.get("early_stopping_met") is True
    way_out = "" if met else "; more queries (loadgen.min_query_count) or a lower target_qps"
    return finding("performance.early_stopping", met, said + way_out)


def _believed(told: object) -> str:
    """LoadGen's list of remarks on one line; what it lacks in a sentence of ours."""
    counts = _QUERIES_MORE.search(str(told))
    if counts is None:
        return one_line(told)
    return (
        f"{counts[1]} queries are too few to believe the percentile: at least {counts[2]} more, "
        "all below the limit"
    )


def _number(log: DetailLog, key: str, factor: float = 1.0) -> float | None:
    value = log.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(float(value) * factor, 6) if factor != 1.0 else float(value)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
