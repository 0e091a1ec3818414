"""What a launch is asked for, checked before anything is written or submitted.

    errand     the run itself: the words after `paceline run`, and the files that it reads
    Resources  what a scheduler is asked for

Paths become absolute, so that they mean the same in a job and in a container. A file that is not
on this machine is no error of a job's, which may see other disks: it is a note.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.config import AUTO, RANDOM_WEIGHTS, Setting, read_settings
from paceline.config.resolve import RunConfig
from paceline.engines import NETWORK_ENGINES
from paceline.errors import InputError
from paceline.operate.subject import asked
from paceline.rundir import RunDir

__all__ = [
    "SPREADING_ENGINE",
    "Errand",
    "Resources",
    "errand",
    "errand_of",
    "file_words",
    "seconds_of",
]

# The engine that uses more nodes than one.
SPREADING_ENGINE = "replicas"
_FILES = {"model.path": "--model", "data.path": "--data", "data.tokenizer": "--set"}
_FLAGS = {
    "run.mode": "--mode",
    "run.benchmark": "--benchmark",
    "run.scenario": "--scenario",
    "run.round": "--round",
    "engine.name": "--engine",
}
_SWITCHES = {"data.trust_pickle": "--trust-pickle", "run.find_qps": "--find-qps"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+,:-]*")
_GPUS = re.compile(r"(?:[A-Za-z0-9_.-]+:)?[0-9]+")
_MEMORY = re.compile(r"[0-9]+[KMGT]?")
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+)(?::(?P<day_seconds>\d+))?)?"
    r"|(?P<hours>\d+):(?P<hour_minutes>\d+):(?P<hour_seconds>\d+)"
    r"|(?P<minutes>\d+)(?::(?P<seconds>\d+))?)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """A run to be launched. `words` follow `paceline run`, without recipe, files and --out.

    `model_engine` is the engine that `engine` makes copies of, or itself; `files` are what the
    run reads, by key of the config; `notes` say which of them are not here.
    """

    words: tuple[str, ...]
    recipe: Path | None
    run_dir: Path
    engine: str
    model_engine: str
    benchmark: str
    files: Mapping[str, Path]
    is_resumed: bool
    ray_address: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_spread(self) -> bool:
        """Whether its engine places copies over nodes."""
        return self.engine == SPREADING_ENGINE

    @property
    def reads(self) -> tuple[Path, ...]:
        """The files and folders that it reads."""
        return tuple(dict.fromkeys(self.files.values()))

    @property
    def needs_network(self) -> bool:
        return self.is_spread or self.engine in NETWORK_ENGINES

    @property
    def job_dir(self) -> Path:
        """Where a job's script, recipe and output lie: beside the run directory."""
        return self.run_dir.with_name(f"{self.run_dir.name}.job")

    def arguments(self, recipe: Path | None) -> list[str]:
        """The words of the run's own command, with the recipe where it will lie."""
        if self.is_resumed:
            return ["run", "--resume", str(self.run_dir)]
        named = [] if recipe is None else [str(recipe)]
        words = [*named, *self.words, *file_words(self.files)]
        return ["run", *words, "--out", str(self.run_dir)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a scheduler is asked for; None where its own default is to stand."""

    nodes: int = 1
    gpus_per_node: str | None = None
    cpus_per_node: int | None = None
    memory: str | None = None
    time: str | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    job_name: str = "paceline"
    exclusive: bool = True
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    ray_port: int | None = None

    def __post_init__(self) -> None:
        for name, value, pattern, example in (
            ("account", self.account, _NAME, "--account my-project"),
            ("partition", self.partition, _NAME, "--partition gpu"),
            ("qos", self.qos, _NAME, "--qos normal"),
            ("job-name", self.job_name, _NAME, "--job-name llama2-70b"),
            ("gpus-per-node", self.gpus_per_node, _GPUS, "--gpus-per-node 8, or h100:8"),
            ("mem", self.memory, _MEMORY, "--mem 500G"),
        ):
            if value is not None and not pattern.fullmatch(value):
                raise InputError(
                    f"--{name} {value!r} is none that a scheduler takes.", hint=example
                )
        if self.time is not None:
            seconds_of(self.time)
        if self.ray_port is not None and not 1024 <= self.ray_port <= 65535:
            raise InputError(f"--ray-port {self.ray_port} is no port.", hint="1024 to 65535")
        for line in (*self.setup, *self.directives):
            if "\n" in line or not line.strip():
                raise InputError(
                    f"{line!r} is not one line.", hint="give --setup or --directive once a line"
                )

    @property
    def num_gpus(self) -> int:
        """GPUs of each node."""
        return int(self.gpus_per_node.rpartition(":")[2]) if self.gpus_per_node else 0


def file_words(files: Mapping[str, Path]) -> list[str]:
    """The flags that name files."""
    found: list[str] = []
    for key, path in files.items():
        flag = _FILES[key]
        found += [flag, f"{key}={path}" if flag == "--set" else str(path)]
    return found


def seconds_of(time: str) -> int:
    """A time as Slurm writes it, in seconds. Raises InputError."""
    match = _TIME.fullmatch(time)
    parts = (
        {name: int(value) for name, value in match.groupdict().items() if value} if match else {}
    )
    total = (
        parts.get("days", 0) * 86400
        + (parts.get("day_hours", 0) + parts.get("hours", 0)) * 3600
        + sum(parts.get(name, 0) for name in ("day_minutes", "hour_minutes", "minutes")) * 60
        + sum(parts.get(name, 0) for name in ("day_seconds", "hour_seconds", "seconds"))
    )
    if total == 0:
        raise InputError(
            f"--time {time!r} is no time that a scheduler takes.",
            hint="--time 04:00:00 (hours:minutes:seconds), 90 (minutes), or 1-12 (days-hours)",
        )
    return total


def errand(
    recipe: Path | None,
    *,
    overrides: Sequence[str],
    flags: Mapping[str, Any],
    out: Path | None,
    wheel_round: str | None,
) -> Errand:
    """The run that a recipe and flags ask for. Raises InputError for what could not run."""
    settings = read_settings(recipe, overrides, flags=flags)
    engine = str(settings["engine.name"].value)

    def of_engine(key: str, *, default: str) -> str:
        name = f"engine.{engine}.{key}"
        return str(settings[name].value) if name in settings else default

    config = asked(settings, recipe=recipe, wheel_round=wheel_round).config
    words, files = _words_and_files(settings, overrides, flags)
    place = out if out is not None else _new_name(config.benchmark, engine)
    run_dir = place.expanduser().resolve()
    RunDir.require_free(run_dir)
    return Errand(
        words=tuple(words),
        recipe=None if recipe is None else recipe.resolve(),
        run_dir=run_dir,
        engine=engine,
        model_engine=of_engine("engine", default=engine),
        benchmark=config.benchmark,
        files=files,
        is_resumed=False,
        ray_address=of_engine("address", default=""),
        notes=_missing(list(files.values())),
    )


def _words_and_files(
    settings: Mapping[str, Setting], overrides: Sequence[str], flags: Mapping[str, Any]
) -> tuple[list[str], dict[str, Path]]:
    """The words of the run but for its files, and the files, absolute."""
    words = [
        word
        for key, flag in _FLAGS.items()
        if flags.get(key) is not None
        for word in (flag, str(flags[key]))
    ]
    words += [flag for key, flag in _SWITCHES.items() if flags.get(key)]
    files: dict[str, Path] = {}
    for key, flag in _FILES.items():
        value = str(settings[key].value)
        if value != AUTO and not value.startswith(RANDOM_WEIGHTS):
            files[key] = Path(value).expanduser().resolve()
        elif settings[key].origin == "flag":
            words += [flag, value]
        elif settings[key].origin == "--set":
            words += ["--set", f"{key}={value}"]
    kept = [text for text in overrides if text.partition("=")[0].strip() not in _FILES]
    return words + [word for text in kept for word in ("--set", text)], files


def errand_of(run_dir: Path) -> Errand:
    """The rest of a run that did not end. Raises RunDirError."""
    directory = RunDir.open(run_dir.expanduser().resolve())
    config = RunConfig.from_json(directory.read_manifest()["config"])
    named = dict(
        zip(_FILES, (config.model_path, config.data_path, config.tokenizer_path), strict=True)
    )
    files = {
        key: path
        for key, path in named.items()
        if path is not None and not str(path).startswith(RANDOM_WEIGHTS)
    }
    return Errand(
        words=(),
        recipe=None,
        run_dir=directory.path,
        engine=config.engine,
        model_engine=str(getattr(config.engine_config, "engine", config.engine)),
        benchmark=config.benchmark,
        files=files,
        is_resumed=True,
        ray_address=str(getattr(config.engine_config, "address", "")),
        notes=_missing(list(files.values())),
    )


def _new_name(benchmark: str, engine: str) -> Path:
    now = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{now}-{benchmark}-{engine}"


def _missing(reads: Sequence[Path]) -> tuple[str, ...]:
    return tuple(
        f"{path} is not on this machine: the job has to find it where it runs."
        for path in reads
        if not path.exists()
    )
