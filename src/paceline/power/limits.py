"""Lowering the cards' power limits under a cap; the `keeper` process does it and undoes it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from paceline.errors import EnvironmentProblem

__all__ = ["Limits"]

_STOP_WITHIN_S = 10.0
_WAYS_OUT = (
    "run as root (or with CAP_SYS_ADMIN), ask the administrator for `nvidia-smi -pl WATTS`, "
    "or leave --lower-limits out"
)


class Limits:
    """The limits of this host's cards, as long as it is open. They are only ever lowered."""

    def __init__(self) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "paceline.power.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends the run; the limits go back after it
        )
        said = self._hear()
        if "error" in said:
            self._keeper.wait()
            raise EnvironmentProblem(
                f"The cards' power limits cannot be lowered: {said['error']}.", hint=_WAYS_OUT
            )
        self.before_w = [float(card["limit_w"]) for card in said["cards"]]
        self.least_w = max((float(card["least_w"]) for card in said["cards"]), default=0.0)
        self.now_w = max(self.before_w, default=0.0)
        self.num_lowered = 0
        self.lowest_w = self.now_w
        self.problem: str | None = None
        self.is_restored = self.is_closed = False

    def lower(self, limit_w: float) -> bool:
        """Give all cards that limit; False when it is not lower than what they have."""
        limit_w = max(limit_w, self.least_w)
        if limit_w >= self.now_w - 1.0 or self.problem is not None:
            return False
        assert self._keeper.stdin is not None
        try:
            self._keeper.stdin.write(json.dumps({"limit_w": round(limit_w, 3)}) + "\n")
            self._keeper.stdin.flush()
        except OSError:
            self.problem = "the process that sets the limits is gone"
            return False
        said = self._hear()
        if "error" in said:
            self.problem = said["error"]
            return False
        self.now_w = max(said["limits_w"])
        self.lowest_w = min(self.lowest_w, *said["limits_w"])
        self.num_lowered += 1
        return True

    def close(self) -> None:
        """Put the limits back; `is_restored` then says whether they are."""
        self.is_closed = True
        if self._keeper.poll() is None:
            assert self._keeper.stdin is not None
            self._keeper.stdin.close()
            said = self._hear()
            self.is_restored = bool(said.get("restored"))
            self.problem = said.get("error", self.problem)
            self._keeper.wait(_STOP_WITHIN_S)
        assert self._keeper.stdout is not None
        self._keeper.stdout.close()

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "limits_before_w": self.before_w,
            "times_lowered": self.num_lowered,
            "lowest_limit_w": self.lowest_w,
            "problem": self.problem,
        }

    def _hear(self) -> dict[str, Any]:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        return json.loads(line) if line else {"error": "the process that sets them ended"}
