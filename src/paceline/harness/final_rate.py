"""From the rate that a search found to a performance test that is VALID at full length.

A probe is shorter than the run, so the found rate is an upper estimate: the run is made at a
margin below it, and by the margin again below that each time LoadGen calls it INVALID, a stated
number of times. Every attempt is in the manifest; the logs of one that was too fast are kept
under `find_qps/`.
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from paceline.config import RunConfig
from paceline.errors import RunDirError
from paceline.harness.performance import judge_performance
from paceline.harness.process import Observer
from paceline.rundir import RunDir

__all__ = ["is_too_high", "settle", "step_down"]

_DIGITS = 4


def settle(config: RunConfig, directory: RunDir, manifest: dict[str, Any]) -> RunConfig:
    """The config with a rate: the found one less the margin, or the one settled on before."""
    plan = config.find_qps
    assert plan is not None
    if config.loadgen.target_qps is None:
        found_qps = manifest["tests"]["find_qps"]["found_qps"]
        config = _at(config, found_qps * (1 - plan.margin))
        manifest["find_qps"] = {
            "found_qps": found_qps,
            "num_probes": manifest["tests"]["find_qps"]["num_probes"],
            "margin": plan.margin,
            "attempts": [],
        }
        _write(config, directory, manifest)
    return config


def is_too_high(config: RunConfig, directory: RunDir, manifest: dict[str, Any]) -> bool:
    """Whether the test that has ended is to be made again at a lower rate.

    Its outcome is an attempt on record then, and for a rate that was searched for only.
    """
    if config.find_qps is None:
        return False
    judged = judge_performance(config, directory)
    attempts = manifest["find_qps"]["attempts"]
    names = [name for name in judged if name.startswith(("ttft_p", "tpot_p"))]
    attempt = {"target_qps": config.loadgen.target_qps, "result": judged["result"]}
    attempt |= {name: judged[name] for name in names}
    if not attempts or attempts[-1]["target_qps"] != config.loadgen.target_qps:
        attempts.append(attempt)
        directory.write_manifest(manifest)
    # A run that is INVALID for another reason than its latencies would be so at any rate.
    late = any(
        not finding["passed"]
        and finding["rule"]
        in ("performance.ttft", "performance.tpot", "performance.early_stopping")
        for finding in judged["findings"]
    )
    return late and len(attempts) < config.find_qps.attempts


def step_down(
    config: RunConfig, directory: RunDir, manifest: dict[str, Any], *, observer: Observer
) -> RunConfig:
    """The config at a rate lower by the margin; the logs of the attempt are put aside."""
    assert config.find_qps is not None
    assert config.loadgen.target_qps is not None
    attempts, before_qps = manifest["find_qps"]["attempts"], config.loadgen.target_qps
    aside = directory.test_dir("find_qps") / f"attempt-{len(attempts)}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        directory.test_dir("performance").rename(aside)
    except OSError as error:
        raise RunDirError(f"Cannot write {aside}: {error.strerror}.") from error
    # A margin of 0 still has to lead somewhere.
    lower = max(config.find_qps.margin, config.find_qps.precision)
    config = _at(config, before_qps * (1 - lower))
    manifest["tests"].pop("performance")
    _write(config, directory, manifest)
    observer({"event": "note", "text": _note(attempts, before_qps, config)})
    return config


def _note(attempts: list[dict[str, Any]], before_qps: float, config: RunConfig) -> str:
    return (
        f"performance: {attempts[-1]['result']} at {before_qps:g} samples/s "
        f"(attempt {len(attempts)}); again at {config.loadgen.target_qps:g}"
    )


def _at(config: RunConfig, target_qps: float) -> RunConfig:
    rounded = float(f"{target_qps:.{_DIGITS}g}")
    loadgen = dataclasses.replace(config.loadgen, target_qps=rounded)
    return dataclasses.replace(config, loadgen=loadgen)


def _write(config: RunConfig, directory: RunDir, manifest: dict[str, Any]) -> None:
    manifest["config"] = config.as_json()
    directory.write_manifest(manifest)
