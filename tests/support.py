"""The command line as tests call it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any


class Outcome:
    """What a command printed and how it ended."""

    def __init__(self, finished: subprocess.CompletedProcess[str]) -> None:
        self.code = finished.returncode
        self.out = finished.stdout
        self.err = finished.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


Paceline = Callable[..., Outcome]
