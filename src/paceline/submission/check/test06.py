"""TEST06 recomputed from its raw data, and compared with what verify_accuracy.txt claims.

The official checker reads three lines of verify_accuracy.txt and believes them. Here the hundred
answers are read again: the first token that was reported against the first of the answer, no more
than one end-of-sequence at the end, the token_count against the ids, and every id in range.
"""

from __future__ import annotations

from paceline.mlperf.logs import AccuracyLog
from paceline.mlperf.rules import Benchmark
from paceline.mlperf.tree_rules import COMPLIANCE_FILES, TEST06
from paceline.submission.check.context import ResultDir, read_token_log
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Inventory, Unreadable

__all__ = ["check_test06"]

# A hundred answers of 1,024 int64 ids take 1.7 MB.
_RAW_BYTES_MAX = 4 << 20


def check_test06(
    inventory: Inventory, result: ResultDir, rules: Benchmark, *, ledger: Ledger
) -> None:
    """Check TEST06 of a closed or network result. An open one needs none, and may have it."""
    base = result.place(result.layout.compliance_dir)
    if not inventory.is_dir(base):
        if result.strict:
            ledger.expect(False, "test06-present", base, "The TEST06 directory is missing.")
        return
    soft = not result.strict
    missing = [
        name for name in COMPLIANCE_FILES.required if not inventory.is_file(f"{base}/{name}")
    ]
    ledger.expect(
        not missing, "test06-present", base, f"TEST06 has no {', '.join(missing)}.", soft=soft
    )
    verify, raw = (f"{base}/{name}" for name in COMPLIANCE_FILES.required)
    claims = _claims(inventory, verify, result, ledger=ledger) if verify not in missing else {}
    try:
        log, dtype = read_token_log(
            inventory, raw, entries_max=10 * TEST06.num_samples, bytes_max=_RAW_BYTES_MAX
        )
    except Unreadable as error:
        if "accuracy/mlperf_log_accuracy.json" not in missing:
            ledger.expect(False, "test06-raw", raw, f"The raw data {error}.", soft=soft)
        return
    _raw(log, dtype, raw, rules, ledger=ledger, soft=soft)
    _lengths(log, raw, rules, ledger)
    computed = {
        "EOS": _eos_holds(log, rules.eos_token_id),
        "Sample length": log.token_count is not None
        and bool((log.token_count == log.tokens.lens).all()),
    }
    if result.kind != "Offline":
        computed["First token"] = _first_token_holds(log)
    for name, holds in computed.items():
        ledger.expect(
            holds, "test06-recomputed", raw, f"The {name} check fails on the raw data.", soft=soft
        )
        if claims and name in claims:
            ledger.expect(
                claims[name] == holds or not holds,
                "test06-claims",
                verify,
                f"verify_accuracy.txt says that the {name} check fails; the raw data say that it "
                "holds: they are not of one run.",
                soft=soft,
            )


def _claims(
    inventory: Inventory, path: str, result: ResultDir, *, ledger: Ledger
) -> dict[str, bool]:
    """What verify_accuracy.txt claims, by check; empty when it cannot be read."""
    try:
        lines = {line.strip() for line in inventory.read_text(path, bytes_max=1 << 16).splitlines()}
    except Unreadable as error:
        detail = f"verify_accuracy.txt {error}."
        ledger.expect(False, "test06-verified", path, detail, soft=not result.strict)
        return {}
    first = TEST06.first_token_lines if result.kind == "Offline" else TEST06.first_token_lines[:1]
    lacking = [line for line in TEST06.lines if line not in lines]
    if not lines & set(first):
        lacking.insert(0, first[0])
    ledger.expect(
        not lacking,
        "test06-verified",
        path,
        f"verify_accuracy.txt does not say {' or '.join(map(repr, lacking))}.",
        soft=not result.strict,
    )
    return {
        name: f"{name} check pass: True" in lines
        for name in ("EOS", "Sample length", "First token")
    }


def _raw(
    log: AccuracyLog, dtype: str, path: str, rules: Benchmark, *, ledger: Ledger, soft: bool
) -> None:
    index, flat = log.qsl_idx, log.tokens.flat
    wrong = []
    if log.truncated or log.malformed or not log.closed:
        place = f" (line {log.malformed[0].line_no})" if log.malformed else ""
        wrong.append("it is truncated" if log.truncated else f"it is damaged{place}")
    if len(log) != TEST06.num_samples:
        wrong.append(f"it holds {len(log)} samples, not {TEST06.num_samples}")
    if len(set(index.tolist())) != len(index):
        wrong.append("a sample stands twice")
    if bool(((index < 0) | (index >= rules.num_samples)).any()):
        wrong.append("it has samples that the dataset has not")
    if dtype == "mixed":
        wrong.append("its answers are of two types (4 and 8 bytes an id)")
    elif bool(((flat < 0) | (flat >= rules.vocabulary_size)).any()):
        wrong.append(f"it has ids that are not in 0..{rules.vocabulary_size - 1}")
    if len(log) and int(log.tokens.lens.min()) < 1:
        wrong.append("an answer is empty")
    ledger.expect(
        not wrong,
        "test06-raw",
        path,
        f"The raw data are not TEST06's: {shown('; '.join(wrong))}.",
        soft=soft,
    )


def _lengths(log: AccuracyLog, path: str, rules: Benchmark, ledger: Ledger) -> None:
    longest = int(log.tokens.lens.max()) if len(log) else 0
    ledger.expect(
        longest <= rules.max_new_tokens,
        "test06-answer-length",
        path,
        f"An answer has {longest} tokens; max_new_tokens is {rules.max_new_tokens}.",
        soft=True,
    )


def _eos_holds(log: AccuracyLog, eos: int) -> bool:
    """No answer ends in two end-of-sequence ids. As in the official test, index 0 is not seen."""
    return len(log) > 0 and not any(
        len(ids) >= 3 and ids[-1] == eos and ids[-2] == eos for ids in log.tokens
    )


def _first_token_holds(log: AccuracyLog) -> bool:
    """Every answer begins with the token that was reported first; none is without a report."""
    if log.token_data is None or not len(log):
        return False
    return all(
        0 < len(first) <= len(ids) and bool((ids[: len(first)] == first).all())
        for ids, first in zip(log.tokens, log.token_data, strict=True)
    )
