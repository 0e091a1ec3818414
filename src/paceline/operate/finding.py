"""What a doctor found: data, from which the command line makes text or JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Diagnosis", "Finding", "Level", "blocker", "fine", "unknown", "warning"]

Level = Literal["ok", "warning", "blocker"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at.

    `seen` is what was found, `why` what it does to a run, `mend` the command that changes it.
    `is_known` is False where the machine would not say; its level is then ok or warning.
    """

    name: str
    level: Level
    seen: str
    why: str
    mend: str | None = None
    is_known: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """All findings, what was not looked at and why, and the plan if one could be made."""

    findings: tuple[Finding, ...]
    not_checked: tuple[tuple[str, str], ...]
    plan: dict[str, Any] | None

    @property
    def num_blockers(self) -> int:
        return sum(finding.level == "blocker" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        levels = [finding.level for finding in self.findings]
        return {
            "blockers": levels.count("blocker"),
            "warnings": levels.count("warning"),
            "ok": levels.count("ok"),
            "unknown": sum(not finding.is_known for finding in self.findings),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "not_checked": [{"name": name, "reason": reason} for name, reason in self.not_checked],
            "plan": self.plan,
        }


def fine(name: str, seen: str, *, why: str) -> Finding:
    return Finding(name=name, level="ok", seen=seen, why=why)


def warning(name: str, seen: str, *, why: str, mend: str) -> Finding:
    return Finding(name=name, level="warning", seen=seen, why=why, mend=mend)


def blocker(name: str, seen: str, *, why: str, mend: str) -> Finding:
    return Finding(name=name, level="blocker", seen=seen, why=why, mend=mend)


def unknown(name: str, seen: str, *, why: str, mend: str) -> Finding:
    """The machine would not say; `mend` is how to find out."""
    return Finding(
        name=name, level="warning", seen=f"unknown: {seen}", why=why, mend=mend, is_known=False
    )
