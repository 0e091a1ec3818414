"""The servers of a run: started once, shared by its tests, checked again before each.

    host = ManagedHost(cwd=..., note=...)     in the process that starts the tests
    host.ready(test, config, context)         servers for a test, old or new; says where they are
    host.ended(facts)                         what is to be said of them after it
    host.close()                              all have ended

    KeptServers(path, on_lost=...)            in the process of a test: where they are

The rules of MLPerf forbid that a query's work is reused for another one. Servers are kept for the
next test only where nothing of a prompt is: the preflight of the test before has seen each server
say that its prefix cache is off, or, where it does not say, the preset's flag that turns it off
is in its command line. All others end, and the next test has new ones; both are on record.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline.engines import EngineContext
from paceline.engines.endpoint_settings import EndpointConfig
from paceline.engines.managed_plan import endpoint_config, plan_servers
from paceline.engines.managed_settings import ManagedConfig
from paceline.engines.server_plan import ServerPlan
from paceline.engines.server_presets import PRESETS
from paceline.engines.server_process import Listener, ServerCommand
from paceline.engines.servers import ServerGroup
from paceline.errors import EngineError
from paceline.rundir import write_atomically

__all__ = ["KeptServers", "ManagedHost"]

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


class ManagedHost:
    """Servers that may outlive a test; see the module docstring for the order of calls."""

    def __init__(
        self,
        *,
        cwd: Path,
        note: Callable[[str], None] = log.warning,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._cwd = cwd
        self._note = note
        self._on_lost = on_lost
        self._report: Callable[[str, float | None], None] | None = None
        self._group: ServerGroup | None = None
        self._made_for: tuple[ManagedConfig, Path | None] | None = None
        self._endpoint: EndpointConfig | None = None
        self._overridden: dict[str, str] = {}
        self._path: Path | None = None
        self._num_starts = 0
        # The test that the servers were started for, the one before this, and why the servers
        # of that one cannot be kept.
        self._since = ""
        self._before = ""
        self._doubt: str | None = None
        self._told: list[str] = []

    def start(self, config: ManagedConfig, context: EngineContext) -> EndpointConfig:
        """New servers. Raises EngineError, InputError or EnvironmentProblem; none is left then."""
        self._report = context.report
        plans, commands = self.plan(config, context)
        for ours, theirs in self._overridden.items():
            self._note(f"{ours} of the preset gives way to {theirs}")
        self._group = ServerGroup(
            commands,
            log_dir=context.log_dir,
            listener=Listener(report=self._tell, note=self._note, on_lost=self._lose),
            start_timeout_s=config.start_timeout_s,
            stop_timeout_s=config.stop_timeout_s,
            restarts=config.restarts,
        )
        self._num_starts += 1
        self._endpoint = endpoint_config(config, plans[0], self._group.start())
        return self._endpoint

    def plan(
        self, config: ManagedConfig, context: EngineContext
    ) -> tuple[list[ServerPlan], list[ServerCommand]]:
        """The servers of these settings, which are the host's from now on; none is started."""
        plans, commands, self._overridden = plan_servers(config, context, cwd=self._cwd)
        self._made_for = (config, context.model)
        return plans, commands

    def ready(self, test: str, config: ManagedConfig, context: EngineContext) -> None:
        """Have servers for a test, and say in `context.kept` where they are.

        Raises EngineError, InputError or EnvironmentProblem; no server is left then.
        """
        self._told = []
        why = self._why_new(config, context)
        if self._group is None or why is not None:
            if why is not None:
                self._told.append(f"New servers were started: {why}.")
                self._note(f"{test}: new servers are started: {why}")
            self.close()
            self.start(config, context)
            self._since = test
        else:
            self._report = context.report
            self._tell(f"asking the servers of the {self._before} test if they are well", None)
            same = f"The servers are those of the {self._since} test"
            kept = f"{same}: each is healthy, and keeps nothing of a prompt."
            self._told = [kept, *self._group.renew()]
        self._before = test
        self._path = context.kept
        self._hand_over(lost=None)

    def ended(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The facts that the test's engine gave, completed; nobody watches the servers now."""
        assert self._group is not None
        self._group.rest()
        self._doubt = self.why_not_kept(facts)
        return self.complete(facts)

    def complete(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What an endpoint engine says, and what is known of the servers besides."""
        assert self._group is not None
        assert self._made_for is not None
        preset, failures = self._made_for[0].preset, self._group.failures()
        processes = self._group.describe()
        notes = [
            *(f"Preset {preset}: {a} gave way to {b}." for a, b in self._overridden.items()),
            *self._told,
            *(_told(one, failures[one["name"]]) for one in processes if one["name"] in failures),
        ]
        return {
            **facts,
            "preset": preset,
            "processes": processes,
            "overridden": self._overridden,
            "started_for_test": self._since or None,
            "num_starts": self._num_starts,
            "cannot_be_kept": self.why_not_kept(facts),
            "notes": [*notes, *facts.get("notes", [])],
        }

    def why_not_kept(self, facts: Mapping[str, Any]) -> str | None:
        """Why another test must not have these servers; None when it may."""
        assert self._made_for is not None
        config = self._made_for[0]
        switch = PRESETS[config.preset].no_reuse
        is_switched_off = switch is not None and not any(
            flag.split()[0] == switch for flag in self._overridden
        )
        checks = [check for check in facts["preflight"] if check["name"] == "prefix caching"]
        for check in checks:
            if check["passed"] or (check["passed"] is None and is_switched_off):
                continue
            return f"{check['server']} may reuse what it has kept of prompts ({check['detail']})"
        return None if checks else "nothing is known of the servers' prefix caches"

    def close(self) -> None:
        """End the servers; safe to call twice."""
        group, self._group = self._group, None
        if group is not None:
            group.close()

    def _why_new(self, config: ManagedConfig, context: EngineContext) -> str | None:
        if self._group is None:
            return None
        if self._made_for != (config, context.model):
            return f"the settings are not those of the {self._before} test"
        return self._doubt

    def _tell(self, what: str, fraction: float | None) -> None:
        """To whoever waits for the servers now: of a later test it is another one."""
        if self._report is not None:
            self._report(what, fraction)

    def _lose(self, account: str) -> None:
        if self._on_lost is not None:
            self._on_lost(account)
        if self._path is not None:
            self._hand_over(lost=account)

    def _hand_over(self, *, lost: str | None) -> None:
        assert self._path is not None
        assert self._endpoint is not None
        facts = {"endpoint": dataclasses.asdict(self._endpoint), "lost": lost}
        write_atomically(self._path, json.dumps(facts, indent=1) + "\n")


class KeptServers:
    """The run's servers as a test's process sees them; `on_lost` hears when none is left."""

    def __init__(self, path: Path, *, on_lost: Callable[[str], None]) -> None:
        """Raises EngineError when nothing is said there."""
        self._path = path
        self._on_lost = on_lost
        self._closing = threading.Event()
        try:
            self.endpoint = EndpointConfig(**self._read()["endpoint"])
        except OSError as error:
            raise EngineError(f"The run's servers are not known: {error}.") from error
        self._thread = threading.Thread(target=self._look, name="kept-servers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._closing.wait(_LOOK_EVERY_S):
            # Said again and again: an engine that is still starting does not hear it yet.
            if (account := self._read()["lost"]) is not None:
                self._on_lost(account)

    def _read(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._path.read_text())
        return facts


def _told(process: Mapping[str, Any], account: str) -> str:
    """A server that died, in a line."""
    state = "was not started again" if process["is_lost"] else "was started again"
    times = f", {process['ended']} times" if process["ended"] > 1 else ""
    return f"{account.splitlines()[0].partition(' Its last lines')[0]}{times}; it {state}."
