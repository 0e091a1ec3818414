"""The checks of an accuracy run: is it one, is it whole, and are its figures its own.

The official checker reads the figures of accuracy.txt and believes them. Here the run must be an
accuracy run of every sample, the figures must agree with each other, the hash must be that of the
log (recomputed where the log is whole), and what is left of a truncated log must be sound.
"""

from __future__ import annotations

import hashlib
import re

from paceline.mlperf.accuracy_log import AccuracyLog
from paceline.mlperf.rules import Benchmark
from paceline.mlperf.tree_rules import ACCURACY_LOG_BYTES_MAX, TRUNCATED_BYTES
from paceline.submission.check.context import (
    Facts,
    ResultDir,
    RunLog,
    read_run_log,
    read_token_log,
    round_of,
)
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Inventory, Unreadable
from paceline.submission.check.performance import check_run_is_clean

__all__ = ["check_accuracy"]

_TEXT_BYTES_MAX = 1 << 18
_LOG_BYTES_MAX = 1 << 29
# Windows writes the mark with its own line ends.
_CUT = re.compile(rb"\r?\n\r?\n\.\.\.\r?\n\r?\n")
_END_SLACK_BYTES = 512
_HASH = re.compile(r"hash=(\S+)")
_FIGURE = re.compile(r"'(rouge1|rouge2|rougeL|tokens_per_sample)':\s{1,8}'?([\d.]{1,40})'?")
_COUNT = re.compile(r"'(gen_num|gen_tok_len)':\s{1,8}'?(\d{1,18})'?")
# tokens_per_sample is rounded to one decimal.
_TENTH = 0.0501


def check_accuracy(
    inventory: Inventory,
    result: ResultDir,
    rules: Benchmark,
    *,
    performance: RunLog | None,
    facts: Facts,
    ledger: Ledger,
) -> None:
    """Check accuracy/ of a result. `performance` is the log of its performance run."""
    base = result.place(result.layout.accuracy_dir)
    path = f"{base}/mlperf_log_detail.txt"
    try:
        log = read_run_log(inventory, path)
    except Unreadable as error:
        ledger.expect(False, "accuracy-log", path, f"The log of the accuracy run {error}.")
        return
    ledger.expect(True, "accuracy-log", path, "")
    check_run_is_clean(log, ledger=ledger, what="accuracy")
    if not _is_accuracy_run(log, rules, ledger):
        return
    _whole(log, rules, result, ledger)
    if performance is not None:
        _same_system(log, performance, ledger)
    figures = _figures(inventory, f"{base}/accuracy.txt", result, rules, ledger=ledger)
    facts.accuracy = {name: str(value) for name, value in figures.items()}
    whole = _log_and_hash(inventory, base, result, rules, ledger=ledger)
    _recount(base, whole, figures.get("tokens_per_sample"), ledger=ledger)
    _performance_tokens(base, figures, facts, result, ledger=ledger)


def _is_accuracy_run(log: RunLog, rules: Benchmark, ledger: Ledger) -> bool:
    mode = log.text("effective_test_mode")
    audited = " under an audit.config" if log.audit else ""
    return ledger.expect(
        mode in ("AccuracyOnly", "SubmissionRun") and not log.audit,
        "accuracy-mode",
        log.path,
        f"accuracy/ holds a {shown(mode)} run of {shown(_issued(log))} samples{audited}, not the "
        f"accuracy run of {rules.num_samples} samples.",
    )


def _issued(log: RunLog) -> int | None:
    queries, each = log.integer("generated_query_count"), log.integer("generated_samples_per_query")
    return None if queries is None or each is None else queries * each


def _whole(log: RunLog, rules: Benchmark, result: ResultDir, ledger: Ledger) -> None:
    need, issued = rules.num_samples, _issued(log)
    total, chosen = (
        log.integer("qsl_reported_total_count"),
        log.integer("effective_accuracy_sample_count"),
    )
    ledger.expect(
        issued == need and total == need and chosen in (None, need),
        "accuracy-all-samples",
        log.path,
        f"{shown(issued)} samples were issued of {shown(total)}"
        f"{'' if chosen is None else f', {shown(chosen)} asked for'}; all must be {need}.",
    )
    found = log.text("effective_scenario")
    ledger.expect(
        found == result.loadgen_scenario,
        "scenario-of-directory",
        log.path,
        f"The directory is {shown(result.scenario)}, but LoadGen ran {shown(found)}.",
    )
    ledger.expect(
        log.text("power_end") is not None,
        "accuracy-run-ended",
        log.path,
        "The log ends before the run did.",
    )


def _same_system(log: RunLog, performance: RunLog, ledger: Ledger) -> None:
    names = ("qsl_name", "qsl_reported_total_count", "sut_name")
    differ = [
        f"{name} {shown(log.log.get(name))} / {shown(performance.log.get(name))}"
        for name in names
        if log.log.get(name) != performance.log.get(name)
    ]
    ledger.expect(
        not differ,
        "same-system",
        log.path,
        f"The accuracy and the performance run differ: {'; '.join(differ)}.",
    )
    ours, theirs = round_of(log), round_of(performance)
    ledger.expect(
        ours == theirs,
        "same-round",
        log.path,
        f"The accuracy run has the seeds of {ours or 'no round'}, the performance run those of "
        f"{theirs or 'no round'}.",
        soft=True,
    )
    version, other = log.text("loadgen_version"), performance.text("loadgen_version")
    ledger.expect(
        version == other,
        "same-loadgen",
        log.path,
        f"The accuracy run was made with LoadGen {shown(version)}, the performance run with "
        f"{shown(other)}.",
        soft=True,
    )


def _figures(
    inventory: Inventory, path: str, result: ResultDir, rules: Benchmark, *, ledger: Ledger
) -> dict[str, float]:
    """The four figures of accuracy.txt, checked; those that are not there are left out."""
    try:
        text = inventory.read_text(path, bytes_max=_TEXT_BYTES_MAX)
    except Unreadable as error:
        ledger.expect(False, "accuracy-txt", path, f"accuracy.txt {error}.")
        return {}
    figures = _stated(path, text, result, rules, ledger=ledger)
    for name, value_found in figures.items():
        bounds = rules.accuracy[name]
        high = "" if bounds.high is None else f" and at most {bounds.high:.7g}"
        ledger.expect(
            bounds.hold(value_found),
            "accuracy-target",
            path,
            f"{name} is {value_found:g}; {rules.name} needs at least {bounds.low:.7g}{high}.",
            soft=not result.strict,
        )
    _counts(path, text, figures, rules, ledger=ledger)
    return figures


def _stated(
    path: str, text: str, result: ResultDir, rules: Benchmark, *, ledger: Ledger
) -> dict[str, float]:
    """The figures that the text gives once each."""
    values: dict[str, set[str]] = {name: set() for name in rules.accuracy}
    for name, value in _FIGURE.findall(text):
        values[name].add(value)
    figures = {
        name: number
        for name, found in values.items()
        if len(found) == 1 and (number := _number(next(iter(found)))) is not None
    }
    numpy_hint = " (NumPy 2 prints np.float64(...))" if "np.float" in text else ""
    wrong = [
        f"{name} has the values {sorted(found)[:5]}" if found else f"{name} is missing"
        for name, found in values.items()
        if name not in figures
    ]
    ledger.expect(
        not wrong,
        "accuracy-txt",
        path,
        f"accuracy.txt: {shown(', '.join(wrong))}{numpy_hint}.",
        # An open result need not reach the targets; it must still say what it reached.
        soft=not result.strict and bool(figures),
    )
    return figures


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _counts(
    path: str, text: str, figures: dict[str, float], rules: Benchmark, *, ledger: Ledger
) -> None:
    counts = {name: int(value) for name, value in _COUNT.findall(text)}
    num, tokens = counts.get("gen_num"), counts.get("gen_tok_len")
    ledger.expect(
        num in (None, rules.num_samples),
        "accuracy-gen-num",
        path,
        f"accuracy.txt scores {num} samples, not {rules.num_samples}.",
    )
    stated = figures.get("tokens_per_sample")
    if num and tokens is not None and stated is not None:
        ledger.expect(
            abs(tokens / num - stated) <= _TENTH,
            "accuracy-tokens-agree",
            path,
            f"{tokens} tokens over {num} samples are {tokens / num:.1f} each, not {stated:g}.",
        )


def _log_and_hash(
    inventory: Inventory, base: str, result: ResultDir, rules: Benchmark, *, ledger: Ledger
) -> AccuracyLog | None:
    """Check the log against its hash; the log itself when it holds every sample."""
    path = f"{base}/mlperf_log_accuracy.json"
    stated = _stated_hash(inventory, f"{base}/accuracy.txt", result, ledger)
    if not ledger.expect(
        inventory.is_file(path), "accuracy-json", path, "mlperf_log_accuracy.json is missing."
    ):
        return None
    size, limit = inventory.size(path), ACCURACY_LOG_BYTES_MAX.value
    ledger.expect(
        size <= limit,
        "accuracy-truncated",
        path,
        f"The accuracy log has {size:,} bytes: it is not truncated to at most {limit:,}.",
    )
    try:
        whole = size > limit or not _is_cut(inventory.read(path, bytes_max=limit))
        if whole:
            digest = hashlib.sha256()
            for chunk in inventory.stream(path, bytes_max=_LOG_BYTES_MAX):
                digest.update(chunk)
            ledger.expect(
                stated == digest.hexdigest(),
                "accuracy-hash-of-log",
                path,
                "This log is not truncated, and the hash in accuracy.txt is not its own "
                f"({digest.hexdigest()}).",
            )
        log = _entries(inventory, path, rules, whole=whole, ledger=ledger)
    except Unreadable as error:
        ledger.expect(False, "accuracy-json", path, f"The accuracy log {error}.")
        return None
    return log if whole and len(log) == rules.num_samples else None


def _recount(base: str, log: AccuracyLog | None, stated: float | None, *, ledger: Ledger) -> None:
    """A whole log says itself how many tokens its answers have."""
    if log is None or stated is None:
        return
    counted = len(log.tokens.flat) / len(log)
    ledger.expect(
        abs(counted - stated) <= _TENTH,
        "accuracy-tokens-recounted",
        f"{base}/mlperf_log_accuracy.json",
        f"The log has {counted:.1f} tokens a sample, accuracy.txt says {stated:g}.",
    )


def _stated_hash(inventory: Inventory, path: str, result: ResultDir, ledger: Ledger) -> str | None:
    """The hash that accuracy.txt gives; None when it gives none, or several."""
    try:
        found = _HASH.findall(inventory.read_text(path, bytes_max=_TEXT_BYTES_MAX))
    except Unreadable:
        found = []
    ledger.expect(
        len(set(found)) == 1 and re.fullmatch(r"[0-9a-fA-F]{64}", found[0]) is not None,
        "accuracy-hash",
        path,
        "The line hash=<sha256 of the whole accuracy log> is "
        f"{shown(', '.join(found)) if found else 'missing'}.",
        soft=not result.strict,
    )
    return found[0].lower() if len(set(found)) == 1 else None


def _is_cut(data: bytes) -> bool:
    """Whether this is what truncation leaves: two ends of some 4096 bytes around the mark."""
    ends = _CUT.split(data)
    return len(ends) == 2 and all(
        abs(len(end) - TRUNCATED_BYTES.value) <= _END_SLACK_BYTES for end in ends
    )


def _entries(
    inventory: Inventory, path: str, rules: Benchmark, *, whole: bool, ledger: Ledger
) -> AccuracyLog:
    """The entries that are there: all, or a truncated log's ends. Raises Unreadable."""
    log, dtype = read_token_log(
        inventory, path, entries_max=rules.num_samples, bytes_max=_LOG_BYTES_MAX
    )
    flat, index = log.tokens.flat, log.qsl_idx
    wrong = []
    if dtype == "mixed":
        wrong.append("answers of two types")
    if not len(log) or not log.closed:
        wrong.append("no whole entries" if not len(log) else "no closing bracket")
    if bool(((index < 0) | (index >= rules.num_samples)).any()):
        wrong.append("samples that the dataset has not")
    if bool(((flat < 0) | (flat >= rules.vocabulary_size)).any()):
        wrong.append(f"ids that are not in 0..{rules.vocabulary_size - 1}")
    if log.token_count is not None and bool((log.token_count != log.tokens.lens).any()):
        wrong.append("a token_count that is not the number of ids")
    if len(set(index.tolist())) != len(index):
        wrong.append("a sample twice")
    if whole and len(log) != rules.num_samples:
        wrong.append(f"{len(log)} of {rules.num_samples} samples")
    ledger.expect(not wrong, "accuracy-entries", path, f"The accuracy log has {', '.join(wrong)}.")
    return log


def _performance_tokens(
    base: str, figures: dict[str, float], facts: Facts, result: ResultDir, *, ledger: Ledger
) -> None:
    """Both runs answer the same questions: they must answer with as many tokens."""
    ours, theirs = facts.tokens_per_sample, figures.get("tokens_per_sample")
    if ours and theirs:
        ledger.expect(
            abs(ours / theirs - 1) <= 0.1,
            "same-tokens-per-sample",
            base,
            f"The performance run made {ours:.1f} tokens a sample, the accuracy run {theirs:g}.",
            soft=not result.strict,
        )
