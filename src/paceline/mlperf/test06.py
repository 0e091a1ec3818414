"""TEST06, the compliance test of this benchmark: its settings, and what its raw log must show.

A hundred samples are issued in performance mode and their answers logged, so that whoever reads
the submission can see that the tokens counted are the tokens made:

    first token   the token reported first is the first of the answer (not in Offline, where
                  none is reported)
    end           an answer ends with at most one end-of-sequence token
    lengths       the tokens counted are as many as the tokens logged

`verify` says this of a raw log, as the official run_verification.py does, and more strictly: all
the queries must be there, once each, and of every answer the first token too.
`verification_text` is what that program writes to verify_accuracy.txt, to the byte. Settings
and sources are in `tree_rules.TEST06`.

LoadGen obeys the file `audit_config` while it lies beside a test; `harness.audit` puts it there
and takes it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.mlperf.accuracy_log import AccuracyLog, Finding
from paceline.mlperf.tree_rules import TEST06

__all__ = ["Test06", "audit_config", "verification_text", "verify"]

_PERFORMANCE_MODE = 2
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Test06:
    """What a raw log shows. `first_token` is None where the scenario reports none.

    The first three are the official program's; `findings` are ours and include them.
    """

    first_token: bool | None
    end: bool
    lengths: bool
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every finding holds."""
        return all(finding.passed for finding in self.findings)


def audit_config(num_samples: int = TEST06.num_samples) -> str:
    """The text of audit.config; `num_samples` is less than 100 only for a smaller benchmark."""
    settings = (
        ("mode", _PERFORMANCE_MODE),
        ("accuracy_log_rng_seed", TEST06.accuracy_log_rng_seed),
        ("accuracy_log_sampling_target", num_samples),
        ("min_query_count", num_samples),
        ("min_duration", 0),
        ("sample_concatenate_permutation", 0),
    )
    return "".join(f"*.*.{name} = {value}\n" for name, value in settings)


def verify(
    log: AccuracyLog, *, scenario: str, eos_token_id: int, num_samples: int = TEST06.num_samples
) -> Test06:
    """Judge the raw log of a TEST06 run.

    An entry that could not be read fails all three checks, as it would stop the official
    program.
    """
    sound = not log.malformed
    ends = [_extra_ends(ids, eos_token_id) for ids in log.tokens]
    doubled = [index for index, extra in zip(log.qsl_idx.tolist(), ends, strict=True) if extra]
    findings = [
        _samples(log, num_samples, is_drawn=scenario != "Offline"),
        _listed("end", "answers end with more than one end-of-sequence token", doubled),
        _lengths(log),
    ]
    first_token = None
    if scenario != "Offline":
        finding = _first_tokens(log)
        findings.append(finding)
        first_token = finding.passed and sound
    return Test06(
        first_token=first_token,
        end=sound and not doubled,
        lengths=sound and findings[2].passed,
        findings=tuple(findings),
    )


def verification_text(result: Test06) -> str:
    """verify_accuracy.txt, as the official program writes it."""
    first = "Skipped" if result.first_token is None else str(result.first_token)
    passed = result.first_token is not False and result.end and result.lengths
    return (
        f"First token check pass: {first}\n"
        f"EOS check pass: {result.end}\n"
        f"Sample length check pass: {result.lengths}\n"
        f"TEST06 verification {'complete' if passed else 'failed'}\n"
    )


def _extra_ends(ids: NDArray[np.int32], eos_token_id: int) -> bool:
    """Whether the last two tokens are both EOS; like the official program's, the scan begins
    at the end, and the first token of all does not count."""
    return len(ids) > 2 and int(ids[-1]) == int(ids[-2]) == eos_token_id


def _samples(log: AccuracyLog, num_samples: int, *, is_drawn: bool) -> Finding:
    """That all queries are there, once each.

    Offline issues a sample once. Where samples are queries of their own LoadGen draws each from
    all of them, so that one may come twice: the rounds' seeds draw a hundred different ones of
    24,576, but of the few of a small benchmark some repeat.
    """
    unique = len(np.unique(log.seq_id if is_drawn else log.qsl_idx))
    faults = [f"line {bad.line_no}: {bad.detail}" for bad in log.malformed[:3]]
    what = "queries" if is_drawn else "samples"
    detail = "; ".join([f"{len(log)} answers of {unique} {what}, expected {num_samples}", *faults])
    passed = unique == len(log) == num_samples and not log.malformed
    return Finding(rule="samples", passed=passed, detail=detail)


def _lengths(log: AccuracyLog) -> Finding:
    if log.token_count is None:
        detail = "the log has no token_count"
        return Finding(rule="lengths", passed=False, detail=detail)
    wrong = log.qsl_idx[log.token_count != log.tokens.lens].tolist()
    return _listed("lengths", "answers have another length than was counted", wrong)


def _first_tokens(log: AccuracyLog) -> Finding:
    if log.token_data is None:
        detail = "the log has no token_data: first tokens were not reported"
        return Finding(rule="first_token", passed=False, detail=detail)
    wrong = [
        index
        for index, ids, first in zip(log.qsl_idx.tolist(), log.tokens, log.token_data, strict=True)
        if not len(first) or not np.array_equal(ids[: len(first)], first)
    ]
    return _listed("first_token", "answers begin with another token than was reported", wrong)


def _listed(rule: str, what: str, indices: Sequence[int]) -> Finding:
    shown = ", ".join(map(str, indices[:_SHOWN]))
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    detail = f"{len(indices)} {what}" + (f": samples {shown}{more}" if indices else "")
    return Finding(rule=rule, passed=not indices, detail=detail)
