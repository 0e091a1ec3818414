"""The checks of a performance run: is it the run that it claims to be, and did it really run.

What the official checker asks of the settings is asked here too; besides, the run must be VALID,
must have lasted (and not just been configured to last) ten minutes, must be free of audit
settings, and its summary must say what its detail log says.
"""

from __future__ import annotations

from datetime import datetime

from paceline.mlperf.rules import ROUNDS, Benchmark
from paceline.submission.check.context import Facts, ResultDir, RunLog, read_run_log, round_of
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Inventory, Unreadable
from paceline.submission.check.summary import check_summary

__all__ = ["check_performance", "check_run_is_clean", "wall_seconds"]

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_CLOCK = "%m-%d-%Y %H:%M:%S.%f"
# A clock that is set during a run may move by a little.
_CLOCK_SLACK_S = 5


def check_performance(
    inventory: Inventory,
    result: ResultDir,
    rules: Benchmark,
    *,
    round_name: str | None,
    ledger: Ledger,
) -> tuple[RunLog | None, Facts]:
    """Check performance/run_1 of a result. Returns its log, when it can be read."""
    base = result.place(result.layout.performance_dir)
    path, facts = f"{base}/mlperf_log_detail.txt", Facts(round_name=round_name)
    try:
        log = read_run_log(inventory, path)
    except Unreadable as error:
        ledger.expect(False, "performance-log", path, f"The performance log {error}.")
        return None, facts
    ledger.expect(True, "performance-log", path, "")
    check_run_is_clean(log, ledger=ledger, what="performance")
    _round(log, facts, ledger)
    mode = log.text("effective_test_mode")
    ledger.expect(
        mode in ("PerformanceOnly", "SubmissionRun"),
        "performance-mode",
        path,
        f"This run has test mode {shown(mode)}, not PerformanceOnly.",
    )
    _scenario(log, result, ledger)
    _settings(log, rules, result, ledger)
    _not_audited(log, ledger)
    _verdict(log, result, ledger)
    _duration(log, rules, result, ledger)
    if result.kind == "Offline":
        _offline(log, rules, result, ledger)
    elif result.loadgen_scenario == "Server":
        _server(log, rules, result, ledger)
    _metric(log, result, facts, ledger)
    check_summary(inventory, f"{base}/mlperf_log_summary.txt", log, ledger=ledger)
    return log, facts


def check_run_is_clean(log: RunLog, *, ledger: Ledger, what: str) -> None:
    """Neither broken lines nor LoadGen errors."""
    bad = log.log.malformed
    where = f"line {bad[0].line_no}: {shown(bad[0].detail)}" if bad else ""
    ledger.expect(
        not bad,
        f"{what}-log-sound",
        log.path,
        f"{len(bad)} lines are not what LoadGen writes ({where}).",
    )
    errors = log.log.errors
    text = shown(errors[0].value) if errors else ""
    count = log.number("num_errors") or 0
    ledger.expect(
        not errors and not count,
        f"{what}-no-errors",
        log.path,
        f"LoadGen logged {max(len(errors), int(count))} errors: {text}",
    )


def _round(log: RunLog, facts: Facts, ledger: Ledger) -> None:
    """The seeds are those of the round asked for; without one, they say which round it is."""
    asked, found = facts.round_name, round_of(log)
    names = ("qsl", "sample_index", "schedule")
    seeds = ", ".join(shown(log.log.get(f"effective_{name}_rng_seed")) for name in names)
    whose = f"those of round {found}" if found else "of no round from v5.1 on"
    told = f"The seeds ({seeds}) are {whose}"
    wheel = f"; run again with mlcommons-loadgen {ROUNDS[asked].wheel}" if asked else ""
    ledger.expect(
        found is not None if asked is None else found == asked,
        "round-seeds",
        log.path,
        f"{told}, not those of {asked}{wheel}." if asked else f"{told}.",
    )
    facts.round_name = asked or found


def _scenario(log: RunLog, result: ResultDir, ledger: Ledger) -> None:
    found = log.text("effective_scenario")
    ledger.expect(
        found == result.loadgen_scenario,
        "scenario-of-directory",
        log.path,
        f"The directory is {shown(result.scenario)}, but LoadGen ran {shown(found)}.",
    )


def _settings(log: RunLog, rules: Benchmark, result: ResultDir, ledger: Ledger) -> None:
    loaded, total = (
        log.number("effective_performance_sample_count"),
        log.number("qsl_reported_total_count"),
    )
    ledger.expect(
        loaded is not None and loaded >= rules.num_samples and total == rules.num_samples,
        "performance-sample-count",
        log.path,
        f"The run had {shown(loaded)} samples loaded of {shown(total)}; both must be "
        f"{rules.num_samples}.",
    )
    ledger.expect(
        log.flag("requested_use_token_latencies"),
        "token-latencies",
        log.path,
        "use_token_latencies is off: LoadGen counted queries, not tokens.",
    )
    ledger.expect(
        log.flag("effective_sample_concatenate_permutation"),
        "equal-issue",
        log.path,
        "sample_concatenate_permutation is off: samples were not issued equally often.",
        soft=not result.strict,
    )
    same = [
        key
        for key in ("issue_unique", "issue_same")
        if log.log.get(f"effective_performance_{key}") not in (False, 0, None)
    ]
    ledger.expect(
        not same, "no-special-issue", log.path, f"The run was made with {', '.join(same)}."
    )


def _not_audited(log: RunLog, ledger: Ledger) -> None:
    keys = ("rng_seed", "probability", "sampling_target")
    set_keys = [k for k in keys if log.log.get(f"effective_accuracy_log_{k}") not in (0, None)]
    named = ", ".join(
        f"accuracy_log_{k} = {shown(log.log.get(f'effective_accuracy_log_{k}'))}" for k in set_keys
    )
    ledger.expect(
        not log.audit,
        "performance-no-audit",
        log.path,
        "LoadGen took settings from an audit.config: this is a compliance run.",
    )
    ledger.expect(
        not set_keys,
        "performance-no-sampling",
        log.path,
        f"The run logged answers as a compliance run does ({named}).",
    )


def _verdict(log: RunLog, result: ResultDir, ledger: Ledger) -> None:
    validity = log.log.result_validity
    reasons = [shown(r.value) for r in log.log.records if r.key == "result_invalid_reason"]
    why = f" ({'; '.join(reasons[:3])})" if reasons else ""
    said = f"calls this run {shown(validity)}{why}" if validity else "never gave its verdict"
    ledger.expect(validity == "VALID", "run-valid", log.path, f"LoadGen {said}.")
    if result.loadgen_scenario == "Server":
        found = shown(log.log.get("early_stopping_ttft_result"))
        ledger.expect(
            log.flag("early_stopping_met"),
            "early-stopping",
            log.path,
            f"Early stopping was not met: too many late queries for a 99 % claim. {found}",
        )


def wall_seconds(log: RunLog) -> float | None:
    """Seconds between LoadGen's two wall clock marks; None when it has not both."""
    try:
        begin, end = (
            datetime.strptime(log.text(key) or "", _CLOCK) for key in ("power_begin", "power_end")
        )
        return (end - begin).total_seconds()
    except ValueError:
        return None


def _duration(log: RunLog, rules: Benchmark, result: ResultDir, ledger: Ledger) -> None:
    need_s = rules.min_duration_ms / 1000
    asked_ms = log.number("effective_min_duration_ms")
    ledger.expect(
        asked_ms is not None and asked_ms >= rules.min_duration_ms,
        "min-duration",
        log.path,
        f"min_duration was {shown(asked_ms)} ms; it must be {rules.min_duration_ms}.",
    )
    key = "result_max_latency_ns" if result.kind == "Offline" else "generated_query_duration"
    ran_ns, wall_s = log.number(key), wall_seconds(log)
    ran_s = None if ran_ns is None else ran_ns / _NS_PER_S
    ledger.expect(
        ran_s is not None
        and ran_s >= need_s
        and wall_s is not None
        and wall_s >= need_s - _CLOCK_SLACK_S,
        "ran-long-enough",
        log.path,
        f"The run took {_seconds(ran_s)} ({key}), {_seconds(wall_s)} by the wall clock; it must "
        f"take {need_s:g} s.",
    )


def _seconds(value: float | None) -> str:
    return "an unknown time" if value is None else f"{value:.1f} s"


def _offline(log: RunLog, rules: Benchmark, result: ResultDir, ledger: Ledger) -> None:
    asked = log.number("effective_samples_per_query")
    issued = log.number("generated_samples_per_query")
    need = rules.num_samples
    ledger.expect(
        asked is not None and asked >= need and issued is not None and issued >= need,
        "offline-samples",
        log.path,
        f"The query asked for {shown(asked)} samples and held {shown(issued)}; it must hold at "
        f"least {need}.",
        soft=not result.strict,
    )
    latency_ns, rate = (
        log.number("result_max_latency_ns"),
        log.number("result_samples_per_second"),
    )
    ledger.expect(
        not (latency_ns and rate and issued)
        or abs(issued / (latency_ns / _NS_PER_S) / rate - 1) < 0.001,
        "figures-consistent",
        log.path,
        f"{shown(issued)} samples in {shown(latency_ns)} ns are not {shown(rate)} samples/s.",
    )


def _server(log: RunLog, rules: Benchmark, result: ResultDir, ledger: Ledger) -> None:
    issued, completed = log.number("generated_query_count"), log.number("result_query_count")
    ledger.expect(
        issued is not None and issued == completed and issued >= 1,
        "figures-consistent",
        log.path,
        f"{shown(issued)} queries were issued, but {shown(completed)} completed.",
    )
    limits = rules.latency[result.kind]
    # The official checker holds an open result, Interactive or not, to the Server limits.
    held = limits if result.strict else rules.latency["Server"]
    for name, limit_ms, held_ms, key in (
        ("ttft", limits.ttft_ms, held.ttft_ms, "result_first_token_99.00_percentile_latency_ns"),
        ("tpot", limits.tpot_ms, held.tpot_ms, "result_time_per_output_token_99.00_percentile_ns"),
    ):
        measured = log.number(key)
        ms = None if measured is None else measured / _NS_PER_MS
        word = f"The 99th percentile of {name.upper()} is {shown(ms)} ms"
        fits = ms is not None and ms < held_ms
        ledger.expect(fits, f"latency-{name}", log.path, f"{word}; it must be below {held_ms} ms.")
        if fits and ms is not None and ms >= limit_ms:
            ledger.expect(
                False,
                f"latency-{name}",
                log.path,
                f"{word}, above the {limit_ms} ms of {result.kind}; the open division lets it be.",
                soft=True,
            )
        asked = log.number(f"requested_server_{name}_latency")
        ledger.expect(
            asked is not None and asked <= limit_ms * _NS_PER_MS,
            f"latency-limit-{name}",
            log.path,
            f"LoadGen judged {name.upper()} by a limit of "
            f"{shown(None if asked is None else asked / _NS_PER_MS)} ms; {result.kind} has "
            f"{limit_ms} ms.",
            soft=not result.strict,
        )


def _metric(log: RunLog, result: ResultDir, facts: Facts, ledger: Ledger) -> None:
    offline = result.kind == "Offline"
    tokens_key = "result_tokens_per_second" if offline else "result_completed_tokens_per_second"
    samples_key = "result_samples_per_second" if offline else "result_completed_samples_per_sec"
    tokens, samples = log.number(tokens_key), log.number(samples_key)
    ledger.expect(
        tokens is not None and tokens > 0,
        "metric",
        log.path,
        f"{tokens_key} is {shown(log.log.get(tokens_key))}; there is no result without it.",
    )
    facts.metric = tokens
    if tokens and samples:
        facts.tokens_per_sample = tokens / samples
