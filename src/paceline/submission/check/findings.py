"""What the checker says: rules, findings, and the ledger that collects them.

    CheckRule    one rule: what must hold, where that is written, what to do when it does not
    TreeFinding  one rule at one path, with its verdict
    Ledger       collects findings; a rule is looked up in the catalogue by its name

A verdict is PASS, NOTE (worth knowing), WARN (accepted today, but look) or FAIL (refused, or
would be wrong to accept). Only FAIL makes a tree fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from paceline.mlperf.rules import Source

__all__ = ["CheckRule", "Ledger", "Official", "TreeFinding", "Verdict", "Verdicts", "shown"]

Verdict = Literal["PASS", "NOTE", "WARN", "FAIL"]
Verdicts = tuple[Verdict, str, str, str]
Official = Literal["checks", "dropped", "never"]
# A finding is read by people: a log that holds a megabyte where a number belongs is cut.
_TEXT_LEN_MAX = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRule:
    """One rule. `official`: the official checker checks it, dropped it, or never had it."""

    name: str
    text: str
    source: Source
    mend: str
    official: Official


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeFinding:
    """One rule at one path. `detail` says what is wrong, or worth knowing; `mend` what to do."""

    path: str
    rule: str
    source: Source
    verdict: Verdict
    detail: str
    mend: str

    @property
    def passed(self) -> bool:
        """Whether the tree may pass with this finding."""
        return self.verdict != "FAIL"

    def as_json(self) -> dict[str, object]:
        """The finding as `paceline check --json` prints it."""
        source = self.source
        return {
            "path": self.path,
            "rule": self.rule,
            "verdict": self.verdict,
            "passed": self.passed,
            "detail": self.detail,
            "mend": self.mend,
            "source": {
                "repository": source.repository,
                "commit": source.commit,
                "path": source.path,
                "symbol": source.symbol,
            },
        }


def shown(value: object) -> str:
    """A name or value from the tree as people may see it: no control characters, not endless."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an integer of too many digits; a very deep list
        text = f"<{type(value).__name__}>"
    if len(text) > _TEXT_LEN_MAX:
        text = f"{text[:_TEXT_LEN_MAX]}... ({len(text)} characters)"
    if text.isascii() and text.isprintable():
        return text
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in safe)


class Ledger:
    """Collects verdicts under the rules of a catalogue.

    A tree has a hundred thousand: until `findings` is called each is a tuple of (verdict, rule,
    path, detail), which passes between processes ten times as fast as a finding.
    """

    def __init__(self, rules: Mapping[str, CheckRule]) -> None:
        self.rules = rules
        self.verdicts: list[Verdicts] = []

    def expect(self, holds: bool, rule: str, path: str, detail: str, *, soft: bool = False) -> bool:
        """Record PASS when the rule holds, else FAIL, or WARN when `soft`. Returns `holds`."""
        verdict: Verdict = "PASS" if holds else "WARN" if soft else "FAIL"
        assert rule in self.rules, rule
        self.verdicts.append((verdict, rule, path, "" if holds else detail))
        return holds

    def note(self, rule: str, path: str, detail: str) -> None:
        """Record what is worth knowing and breaks nothing."""
        self.verdicts.append(("NOTE", rule, path, detail))

    def extend(self, verdicts: Iterable[Verdicts]) -> None:
        """Take what another ledger collected."""
        self.verdicts.extend(verdicts)

    def failed(self) -> bool:
        """Whether any verdict is FAIL."""
        return any(verdict[0] == "FAIL" for verdict in self.verdicts)

    def findings(self) -> list[TreeFinding]:
        """What was collected, in that order."""
        return [
            TreeFinding(
                path=shown(path),
                rule=rule,
                source=self.rules[rule].source,
                verdict=verdict,
                detail=detail,
                mend="" if verdict == "PASS" else self.rules[rule].mend,
            )
            for verdict, rule, path, detail in self.verdicts
        ]
