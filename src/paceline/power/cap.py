"""The watch on a power cap: near it from 95 %, above it from 100 %, and for how long."""

from __future__ import annotations

from typing import Any

__all__ = ["NEAR", "CapWatch"]

NEAR = 0.95
# It is over when the sum is so far below again, so that one wave is one warning.
_OVER = 0.93
_SAY_AGAIN_S = 60.0
# Between two looks that are further apart than this nothing was seen.
_LONGEST_STEP_S = 10.0


class CapWatch:
    """Counts the seconds near and above a cap, and says when a line is crossed."""

    def __init__(self, cap_w: float) -> None:
        self.cap_w = cap_w
        self._before_s: float | None = None
        self._level = 0
        self._said_s = 0.0
        self.num_warnings = 0
        self.near_s = 0.0
        self.above_s = 0.0
        self.unknown_s = 0.0
        self.peak_w: float | None = None

    def look(self, now_s: float, total_w: float | None) -> str | None:
        """The sum is `total_w`; what is to be said about it, if anything."""
        step_s = 0.0 if self._before_s is None else min(now_s - self._before_s, _LONGEST_STEP_S)
        self._before_s = now_s
        if total_w is None:
            self.unknown_s += step_s
            return None
        self.peak_w = max(total_w, self.peak_w or 0.0)
        if total_w > self.cap_w:
            self.above_s += step_s
        elif total_w >= NEAR * self.cap_w:
            self.near_s += step_s
        level = self._level_of(total_w)
        rises, self._level = level > self._level, level
        if not level or not (rises or now_s - self._said_s >= _SAY_AGAIN_S):
            return None
        self._said_s = now_s
        self.num_warnings += 1
        word = "ABOVE the cap" if level == 2 else f"{total_w / self.cap_w:.0%} of the cap"
        return f"power: {total_w:,.0f} W, {word} of {self.cap_w:,.0f} W"

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "cap_w": self.cap_w,
            "peak_w": None if self.peak_w is None else round(self.peak_w, 1),
            "seconds_near": round(self.near_s, 1),
            "seconds_above": round(self.above_s, 1),
            "seconds_unknown": round(self.unknown_s, 1),
            "warnings": self.num_warnings,
        }

    def _level_of(self, total_w: float) -> int:
        if total_w > self.cap_w:
            return 2
        if total_w >= NEAR * self.cap_w:
            return 1
        return min(self._level, 1) if total_w >= _OVER * self.cap_w else 0
