"""TEST06 recomputed from its raw data, and compared with what verify_accuracy.txt claims.

The official checker reads three lines of verify_accuracy.txt and believes them. Here the hundred
answers are read again: the first token that was reported against the first of the answer, no more
than one end-of-sequence at the end, the token_count against the ids, and every id in range.
"""

from __future__ import annotations

from paceline.mlperf.logs import AccuracyLog
from paceline.mlperf.rules import Benchmark
from paceline.mlperf.test06 import verify
from paceline.mlperf.tree_rules import COMPLIANCE_FILES, TEST06
from paceline.submission.check.context import ResultDir, read_token_log
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Inventory, Unreadable

__all__ = ["check_test06"]

# A hundred answers of 1,024 int64 ids take 1.7 MB.
_RAW_BYTES_MAX = 4 << 20
# Four standard deviations either side of a hundred drawn by lot.
_BY_LOT = (60, 140)


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
    said, raw = (f"{base}/{name}" for name in COMPLIANCE_FILES.required)
    claims = _claims(inventory, said, result, ledger=ledger) if inventory.is_file(said) else {}
    try:
        log, dtype = read_token_log(
            inventory, raw, entries_max=10 * TEST06.num_samples, bytes_max=_RAW_BYTES_MAX
        )
    except Unreadable as error:
        if inventory.is_file(raw):
            ledger.expect(False, "test06-raw", raw, f"The raw data {error}.", soft=soft)
        return
    _raw(log, dtype, raw, rules, ledger=ledger, soft=soft)
    _lengths(log, raw, rules, ledger)
    if log.truncated:
        return
    checked = verify(log, scenario=result.kind, eos_token_id=rules.eos_token_id)
    computed = {"EOS": checked.end, "Sample length": checked.lengths}
    if checked.first_token is not None:
        computed["First token"] = checked.first_token
    for name, holds in computed.items():
        ledger.expect(
            holds, "test06-recomputed", raw, f"The {name} check fails on the raw data.", soft=soft
        )
    differing = [name for name, holds in computed.items() if claims.get(name, holds) != holds]
    ledger.expect(
        not differing,
        "test06-claims",
        said,
        f"verify_accuracy.txt and the raw data differ on: {', '.join(differing)}.",
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
    faults = [fault for fault in log.malformed if not (log.truncated and "middle" in fault.detail)]
    if not log.closed or (faults and not log.truncated):
        wrong.append(f"it is damaged{f' (line {faults[0].line_no})' if faults else ''}")
    if not log.truncated and not _enough(log):
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
    ledger.expect(
        not log.truncated and len(log) == TEST06.num_samples,
        "test06-whole",
        path,
        "The raw data are truncated: nobody can verify TEST06 from them."
        if log.truncated
        else f"The raw data hold {len(log)} answers; today's TEST06 logs {TEST06.num_samples}.",
        soft=True,
    )


def _enough(log: AccuracyLog) -> bool:
    """Whether the test logged what it should.

    Today's test issues a hundred samples and logs them all. An older audit.config let the run
    be longer and drew about a hundred of its samples by lot; their seq_id show it.
    """
    if len(log) == TEST06.num_samples:
        return True
    by_lot = len(log) > 0 and int(log.seq_id.max()) >= 2 * TEST06.num_samples
    return by_lot and _BY_LOT[0] <= len(log) <= _BY_LOT[1]


def _lengths(log: AccuracyLog, path: str, rules: Benchmark, ledger: Ledger) -> None:
    longest = int(log.tokens.lens.max()) if len(log) else 0
    ledger.expect(
        longest <= rules.max_new_tokens,
        "test06-answer-length",
        path,
        f"An answer has {longest} tokens; max_new_tokens is {rules.max_new_tokens}.",
        soft=True,
    )
