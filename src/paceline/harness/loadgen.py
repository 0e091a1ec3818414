"""The only door to LoadGen: its wheel, its settings, its callbacks and its buffers.

LoadGen carries MLPerf's mlperf.conf, and with it a round's seeds, inside the extension module.
`wheel()` reads them from the file without loading it, so a wheel of another round is refused
before anything else happens. The same seeds are compared again with what LoadGen itself says
once it has read its settings.

One process runs one test: LoadGen reads its embedded mlperf.conf at the first FromConfig of a
process only. `harness.child` is that process.

Responses are int32 token ids, little-endian. LoadGen copies the bytes inside the call, so a
buffer need only live until the call returns.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paceline.config import RunConfig
from paceline.engines import TokenIds
from paceline.errors import LoadGenError
from paceline.harness import audit
from paceline.mlperf import rules

__all__ = ["Sut", "Wheel", "complete", "start_test", "user_conf", "wheel"]

_PACKAGE = "mlcommons-loadgen"
_SEED = re.compile(rb"^\*\.\*\.(qsl|sample_index|schedule)_rng_seed = (\d+)", re.MULTILINE)


class Sut(Protocol):
    """The harness side that LoadGen talks to."""

    def issue(self, query: Sequence[tuple[int, int]]) -> None:
        """A query: (response_id, sample_index) of each sample. Must not raise."""

    def flush(self) -> None:
        """No more queries will come for now."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """The installed LoadGen: its version, and the round whose seeds it carries (None: unknown)."""

    version: str
    round: str | None

    def require(self, round_name: str) -> None:
        """Raises LoadGenError, naming the wheel to install, when the seeds are another round's."""
        wanted = rules.round_rules(round_name)
        if self.round != round_name:
            carries = f"round {self.round}'s" if self.round else "those of no round known here"
            raise LoadGenError(
                f"Round {round_name} needs other seeds than the installed LoadGen has: "
                f"{_PACKAGE} {self.version} carries {carries}.",
                hint=f"pip install {_PACKAGE}=={wanted.wheel}"
                + (f"   (or --round {self.round})" if self.round else ""),
            )


def wheel() -> Wheel:
    """The installed LoadGen. Raises LoadGenError when there is none."""
    spec = importlib.util.find_spec("mlperf_loadgen")
    if spec is None or spec.origin is None:
        raise LoadGenError(
            "LoadGen is not installed.", hint=f"pip install {_PACKAGE} -c constraints.txt"
        )
    found = dict(_SEED.findall(Path(spec.origin).read_bytes()))
    seeds = tuple(int(found.get(name, 0)) for name in (b"qsl", b"sample_index", b"schedule"))
    for name, known in rules.ROUNDS.items():
        if seeds == _seed_values(known.seeds):
            return Wheel(importlib.metadata.version(_PACKAGE), name)
    return Wheel(importlib.metadata.version(_PACKAGE), None)


def user_conf(config: RunConfig, mode: str) -> str:
    """The text of user.conf. LoadGen reads a line only with spaces around its `=`."""
    model = rules.benchmark(config.benchmark).loadgen_model
    scenario = config.scenario
    loaded = _loaded_samples(config, mode)
    lines = (
        (f"{model}.*.performance_sample_count_override", loaded),
        (f"{model}.{scenario}.target_qps", config.loadgen.target_qps),
        (f"{model}.{scenario}.min_duration", config.loadgen.min_duration_ms),
        (f"{model}.{scenario}.min_query_count", config.loadgen.min_query_count),
    )
    return "".join(f"{key} = {value}\n" for key, value in lines)


def start_test(config: RunConfig, mode: str, folder: Path, *, sut: Callable[[], Sut]) -> None:
    """Run one LoadGen test to its end; its logs land in `folder`, which holds user.conf.

    `sut` is called once LoadGen has taken its settings, so that a wrong wheel or user.conf is
    refused before a model is loaded. Raises LoadGenError. Blocks until every sample is answered.
    """
    lg = _import()
    settings = lg.TestSettings()
    _load_settings(settings, config, folder)
    settings.scenario = getattr(lg.TestScenario, config.scenario)
    settings.mode = lg.TestMode.AccuracyOnly if mode == "accuracy" else lg.TestMode.PerformanceOnly
    target = sut()
    log_settings = lg.LogSettings()
    log_settings.enable_trace = False
    log_settings.log_output.outdir = str(folder)
    log_settings.log_output.copy_summary_to_stdout = False

    def issue(query: Sequence[Any]) -> None:
        if mode == "compliance":
            audit.remove(folder)  # LoadGen has read it
        target.issue([(sample.id, sample.index) for sample in query])

    handle = lg.ConstructSUT(issue, target.flush)
    loaded = _loaded_samples(config, mode)
    library = lg.ConstructQSL(config.num_samples, loaded, _nothing, _nothing)
    try:
        with _audit(config, mode, folder) as path:
            lg.StartTestWithLogSettings(handle, library, settings, log_settings, path)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(handle)
    trace = folder / "mlperf_log_trace.json"
    if trace.exists() and trace.stat().st_size == 0:
        trace.unlink()


def complete(responses: Sequence[tuple[int, TokenIds]]) -> None:
    """Answer samples: (response_id, token ids), each (n,) int32 and contiguous, n >= 2."""
    lg = sys.modules["mlperf_loadgen"]
    lg.QuerySamplesComplete(
        [
            lg.QuerySampleResponse(
                response_id, ids.__array_interface__["data"][0], ids.nbytes, len(ids)
            )
            for response_id, ids in responses
        ]
    )


def _import() -> Any:
    import mlperf_loadgen

    return mlperf_loadgen


def _loaded_samples(config: RunConfig, mode: str) -> int:
    performance = config.loadgen.performance_samples
    return performance if mode == "performance" else config.num_samples


@contextlib.contextmanager
def _audit(config: RunConfig, mode: str, folder: Path) -> Iterator[str]:
    """The file that LoadGen is to look for: there in a compliance test, nowhere in another."""
    if mode == "compliance":
        with audit.placed(folder, config.num_samples) as file:
            yield str(file.path)
        return
    audit.remove(folder)
    yield str(audit.audit_path(folder))


def _load_settings(settings: Any, config: RunConfig, folder: Path) -> None:
    model = rules.benchmark(config.benchmark).loadgen_model
    path = folder / "user.conf"
    code = settings.FromConfig(str(path), model, config.scenario)
    if code != 0:
        raise LoadGenError(
            f"LoadGen refused {path} (code {code}).", hint="report this: paceline wrote that file"
        )
    got = (settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed)
    if got != _seed_values(rules.round_rules(config.round).seeds):
        wheel().require(config.round)
        raise LoadGenError(f"LoadGen's seeds {got} are not those of round {config.round}.")
    if not settings.use_token_latencies:
        raise LoadGenError(f"This LoadGen does not know the model key {model}.")


def _seed_values(seeds: rules.Seeds) -> tuple[int, int, int]:
    return seeds.qsl, seeds.sample_index, seeds.schedule


def _nothing(_: Sequence[int]) -> None:
    """Prompts are in memory from the start: nothing to load or unload."""
