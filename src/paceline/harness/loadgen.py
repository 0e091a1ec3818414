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
import dataclasses
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paceline.config import LoadGenSettings, RunConfig
from paceline.engines import TokenIds
from paceline.errors import LoadGenError
from paceline.harness import audit
from paceline.mlperf import rules

__all__ = [
    "Load",
    "Session",
    "Sut",
    "Wheel",
    "complete",
    "complete_first_tokens",
    "rehearse",
    "user_conf",
    "wheel",
]

_PACKAGE = "mlcommons-loadgen"
_NS_PER_MS = 1_000_000
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
    """The text of user.conf. LoadGen reads a line only with spaces around its `=`.

    LoadGen knows Interactive as the Server scenario of another model key.
    """
    key = rules.benchmark(config.benchmark).loadgen_key(config.scenario)
    scenario, settings = _scenario(config), config.loadgen
    lines = [
        (f"{key}.*.performance_sample_count_override", _loaded_samples(config, mode)),
        (f"{key}.{scenario}.target_qps", settings.target_qps),
        (f"{key}.{scenario}.min_duration", settings.min_duration_ms),
        (f"{key}.{scenario}.min_query_count", settings.min_query_count),
        (f"{key}.{scenario}.ttft_latency", settings.ttft_ms),
        (f"{key}.{scenario}.tpot_latency", settings.tpot_ms),
        (f"{key}.{scenario}.target_latency_percentile", settings.latency_percentile),
    ]
    return "".join(f"{name} = {value}\n" for name, value in lines if value is not None)


def rehearse(config: RunConfig, folder: Path) -> list[int]:
    """The samples that a performance run draws, in the order of issue, each once.

    Asked of LoadGen itself, with a SUT that answers at once; its logs land in `folder`.
    """
    once = LoadGenSettings(
        target_qps=1.0,
        min_duration_ms=0,
        min_query_count=1,
        performance_samples=config.loadgen.performance_samples,
    )
    config = dataclasses.replace(config, scenario="Offline", network=False, loadgen=once)
    (folder / "user.conf").write_text(user_conf(config, "performance"))
    answers = _Rehearsal()
    Session(config, folder, "performance").run(folder, answers)
    return answers.indices


class _Rehearsal:
    """A SUT that notes what it is asked."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self._answer = np.array([3, 2], dtype=np.int32)

    def issue(self, query: Sequence[tuple[int, int]]) -> None:
        self.indices += [index for _, index in query]
        complete([(response_id, self._answer) for response_id, _ in query])

    def flush(self) -> None:
        """Nothing is held back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a test of a search puts on the SUT: a rate, or `num_queries` at once without one."""

    target_qps: float | None
    min_duration_ms: int
    num_queries: int


class Session:
    """LoadGen with its settings read, once, from the user.conf in a folder.

    Made before a model is loaded, so that a wrong wheel or user.conf is refused by then. Raises
    LoadGenError.
    """

    def __init__(self, config: RunConfig, folder: Path, mode: str) -> None:
        lg = _import()
        self._config, self._mode = config, mode
        self._settings = lg.TestSettings()
        _load_settings(self._settings, config, folder)
        self._settings.scenario = getattr(lg.TestScenario, _scenario(config))
        accuracy = mode == "accuracy"
        self._settings.mode = lg.TestMode.AccuracyOnly if accuracy else lg.TestMode.PerformanceOnly

    def put(self, load: Load) -> None:
        """Have the next test put `load` on the SUT instead of what user.conf says.

        Samples are drawn one by one: whole permutations of the dataset would make a test as long
        as the one that is searched for.
        """
        lg, settings = _import(), self._settings
        settings.sample_concatenate_permutation = False
        settings.min_duration_ms = load.min_duration_ms
        settings.min_query_count = load.num_queries
        if load.target_qps is None:
            settings.scenario = lg.TestScenario.Offline
        else:
            settings.scenario = lg.TestScenario.Server
            settings.server_target_qps = load.target_qps

    def size(self, target_qps: float) -> None:
        """Have an Offline test be as long as this rate makes it, instead of user.conf's."""
        self._settings.offline_expected_qps = target_qps

    def run(
        self, folder: Path, target: Sut, *, network_name: Callable[[], str] | None = None
    ) -> None:
        """One test to its end, when every sample is answered; its logs land in `folder`.

        `network_name` asks the SUT's nodes for its name: LoadGen then sees a query dispatch
        library in place of a SUT.
        """
        lg = _import()
        log_settings = lg.LogSettings()
        log_settings.enable_trace = False
        log_settings.log_output.outdir = str(folder)
        log_settings.log_output.copy_summary_to_stdout = False

        def issue(query: Sequence[Any]) -> None:
            if self._mode == "compliance":
                audit.remove(folder)  # LoadGen has read it
            target.issue([(sample.id, sample.index) for sample in query])

        if network_name is None:
            handle, destroy = lg.ConstructSUT(issue, target.flush), lg.DestroySUT
        else:
            handle, destroy = lg.ConstructQDL(issue, target.flush, network_name), lg.DestroyQDL
        total, loaded = self._config.num_samples, _loaded_samples(self._config, self._mode)
        library = lg.ConstructQSL(total, loaded, _nothing, _nothing)
        try:
            with _audit(self._config, self._mode, folder) as path:
                lg.StartTestWithLogSettings(handle, library, self._settings, log_settings, path)
        finally:
            lg.DestroyQSL(library)
            destroy(handle)
        trace = folder / "mlperf_log_trace.json"
        if trace.exists() and trace.stat().st_size == 0:
            trace.unlink()


def complete(responses: Sequence[tuple[int, TokenIds]]) -> None:
    """Answer samples: (response_id, token ids), each (n,) int32 and contiguous, n >= 2."""
    sys.modules["mlperf_loadgen"].QuerySamplesComplete(_responses(responses))


def complete_first_tokens(responses: Sequence[tuple[int, TokenIds]]) -> None:
    """Report first tokens: (response_id, the one id), each (1,) int32; the moment is the call's."""
    sys.modules["mlperf_loadgen"].FirstTokenComplete(_responses(responses))


def _responses(responses: Sequence[tuple[int, TokenIds]]) -> list[Any]:
    lg = sys.modules["mlperf_loadgen"]
    return [
        lg.QuerySampleResponse(
            response_id, ids.__array_interface__["data"][0], ids.nbytes, len(ids)
        )
        for response_id, ids in responses
    ]


def _import() -> Any:
    import mlperf_loadgen

    return mlperf_loadgen


def _scenario(config: RunConfig) -> str:
    """LoadGen's word for the scenario."""
    return "Offline" if config.scenario == "Offline" else "Server"


def _loaded_samples(config: RunConfig, mode: str) -> int:
    performance = config.loadgen.performance_samples
    return performance if mode in ("performance", "find_qps") else config.num_samples


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
    benchmark = rules.benchmark(config.benchmark)
    key, path = benchmark.loadgen_key(config.scenario), folder / "user.conf"
    code = settings.FromConfig(str(path), key, _scenario(config))
    if code != 0:
        raise LoadGenError(
            f"LoadGen refused {path} (code {code}).", hint="report this: paceline wrote that file"
        )
    got = (settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed)
    if got != _seed_values(rules.round_rules(config.round).seeds):
        wheel().require(config.round)
        raise LoadGenError(f"LoadGen's seeds {got} are not those of round {config.round}.")
    if not settings.use_token_latencies:
        raise LoadGenError(f"This LoadGen does not know the model key {key}.")
    if (limits := benchmark.latency.get(config.scenario)) is not None:
        _check_limits(settings, limits, f"{benchmark.name} {config.scenario}")


def _check_limits(settings: Any, limits: rules.TokenLatency, what: str) -> None:
    wanted = (limits.ttft_ms, limits.tpot_ms, limits.percentile)
    applied = (
        settings.ttft_latency / _NS_PER_MS,
        settings.tpot_latency / _NS_PER_MS,
        round(settings.server_target_latency_percentile * 100, 6),
    )
    if applied != wanted:
        raise LoadGenError(
            f"LoadGen would apply {applied[0]:g} ms to the first token and {applied[1]:g} ms per "
            f"token at percentile {applied[2]:g}; {what} has {wanted[0]} ms, {wanted[1]} ms and "
            f"{wanted[2]}."
        )


def _seed_values(seeds: rules.Seeds) -> tuple[int, int, int]:
    return seeds.qsl, seeds.sample_index, seeds.schedule


def _nothing(_: Sequence[int]) -> None:
    """Prompts are in memory from the start: nothing to load or unload."""
