"""`paceline bench cluster`: its figures, and that standard output is JSON and nothing else."""

from __future__ import annotations

import pytest
from support import Paceline

pytest.importorskip("ray", reason="Ray is not installed: pip install 'paceline[ray]'")


@pytest.mark.slow
def test_the_bench_of_a_cluster_counts_what_it_killed(paceline: Paceline) -> None:
    """A fifth of the processes is killed; the run still gets nearly all of the others' speed."""
    outcome = paceline(
        *("bench", "cluster", "--replicas", 4, "--samples", 1000, "--seconds", 25),
        *("--kill", 0.2, "--json"),
    )
    facts = outcome.json
    assert facts["killed"] == 1
    assert facts["moved"] >= 1
    assert 0.9 < facts["efficiency"] <= 1.0
    assert facts["samples_per_second"] <= facts["mean_alive_speed"] <= facts["sum_of_speeds"]
    assert facts["messages"] > 0


def test_more_replicas_than_samples_are_refused(paceline: Paceline) -> None:
    outcome = paceline("bench", "cluster", "--replicas", 64, "--samples", 10)
    assert outcome.code == 2
    assert "fewer than 64 replicas" in outcome.err
