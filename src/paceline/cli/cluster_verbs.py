"""`paceline bench cluster`: the replicas engine on a Ray of its own, with paced replicas."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from paceline.cli.screen import Bar
from paceline.cli.verbs import print_facts
from paceline.engines.replicas_bench import Bench, measure

__all__ = ["bench_cluster"]


def bench_cluster(*, options: dict[str, Any], as_json: bool) -> None:
    """Run the bench and print its figures; `options` are the fields of `Bench`."""
    with Bar("starting") as bar:

        def report(what: str, fraction: float | None) -> None:
            bar.stage(what if fraction is None else f"{what} {fraction:.0%}")

        # Ray prints its warnings on standard output, which is the figures' here.
        with contextlib.redirect_stdout(sys.stderr):
            facts = measure(Bench(**options, report=report))
    print_facts(facts, as_json=as_json)
