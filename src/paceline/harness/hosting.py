"""What a run's engine keeps between its tests, as the run's own process keeps it.

    with Hosting(directory, cwd=..., observer=...) as hosting:
        hosting.ready(config, test)       before the process of each test
        hosting.ended(facts)              after it

Nothing is kept for most engines; the servers of the managed one are, which take minutes to start.
What is kept ends with the last test, with an error, and with Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paceline import engines
from paceline.config import RunConfig
from paceline.harness import preflight
from paceline.harness.process import Observer
from paceline.rundir import RunDir

__all__ = ["Hosting"]


class Hosting:
    """The host of a run's engine, if it has one."""

    def __init__(self, directory: RunDir, *, cwd: Path, observer: Observer) -> None:
        self._log_dir = directory.path.resolve() / "log"
        self._cwd = cwd
        self._observer = observer
        self._host: engines.EngineHost | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._host is not None:
            self._host.close()

    def ready(self, config: RunConfig, test: str) -> None:
        """Have ready what the engine of a test finds. Raises PacelineError."""
        if self._host is None:
            self._host = engines.load_host(config.engine, cwd=self._cwd, note=self._note)
        if self._host is None:
            return

        def report(what: str, fraction: float | None) -> None:
            self._observer({"event": "loading", "test": test, "what": what, "fraction": fraction})

        context = preflight.context_of(
            config,
            (),
            log_dir=self._log_dir,
            report=report,
            streaming=config.scenario != "Offline",
            kept=engines.kept_path(config.engine, self._log_dir),
        )
        self._host.ready(test, config.engine_config, context)

    def ended(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """A test's facts, with what is known here of its engine."""
        if self._host is None:
            return dict(facts)
        return {**facts, "engine": self._host.ended(facts["engine"])}

    def _note(self, text: str) -> None:
        self._observer({"event": "note", "text": text})
