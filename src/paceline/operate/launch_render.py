"""A launch as text: the batch file of Slurm or PBS, written to be read and changed.

The file has one shape for both: a head with the scheduler's directives and three functions that
differ, then Ray where the engine spreads over nodes, then the run. Every value is quoted where it
is set; the rest of the file uses variables.

`@@{name}` in a template is a value; `$` and `{}` are the shell's own.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from paceline.errors import InputError
from paceline.operate.launch_container import Container
from paceline.operate.launch_plan import SPREADING_ENGINE, Errand, Resources, seconds_of

__all__ = ["SCHEDULERS", "Job", "render", "shell_words"]

SCHEDULERS = ("slurm", "pbs")
# Ray's word for "as RAY_ADDRESS says".
_JOBS_RAY = "auto"
# Ray's own default is 6379; each job takes another, so that two on one node do not meet.
_RAY_PORT = "$((20000 + 10#${JOB//[^0-9]/} % 20000))"
_RAY_TRIES = 90
# So long before the time limit a job is told, that the run may end in order.
_WARNED_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run, what it asks of which scheduler, and the container it is put into, if any."""

    scheduler: str
    errand: Errand
    resources: Resources
    container: Container | None

    def __post_init__(self) -> None:
        engine, nodes = self.errand.engine, self.resources.nodes
        if nodes < 1:
            raise InputError(f"--nodes {nodes} is none.", hint="--nodes 1 or more")
        if nodes > 1 and not self.errand.is_spread:
            raise InputError(
                f"--nodes {nodes} would leave all but one idle: the engine '{engine}' runs on one.",
                hint=f"--engine {SPREADING_ENGINE} (see docs/cluster.md), or --nodes 1",
            )
        if self.errand.ray_address not in ("", _JOBS_RAY):
            raise InputError(
                f"The recipe's Ray at {self.errand.ray_address} is another than the job's own.",
                hint=f'engine.replicas.address = "{_JOBS_RAY}": a job says where its Ray is',
            )
        if self.scheduler == "pbs":
            _refuse_for_pbs(self.resources)
        for path in (self.script, self.errand.run_dir, Path.cwd()):
            if '"' in str(path) or "\n" in str(path) or "\\" in str(path):
                raise InputError(
                    f"{path} cannot stand in a batch file: it has a quote, a backslash or a line "
                    "break in its name.",
                    hint="another --out",
                )

    @property
    def is_spread(self) -> bool:
        """Whether the job starts Ray: on one node the engine can start its own."""
        return self.resources.nodes > 1 or self.errand.ray_address == _JOBS_RAY

    @property
    def script(self) -> Path:
        suffix = "sbatch" if self.scheduler == "slurm" else "pbs"
        return self.errand.job_dir / f"job.{suffix}"

    @property
    def recipe(self) -> Path | None:
        """The job's own copy: the recipe may be changed while the job waits."""
        return None if self.errand.recipe is None else self.errand.job_dir / "recipe.toml"

    @property
    def output(self) -> str:
        """The file that the scheduler writes; {} stands for the job's number."""
        name = "slurm-{}.out" if self.scheduler == "slurm" else "pbs.out"
        return f"{self.errand.job_dir}/{name}"

    @property
    def submission(self) -> list[str]:
        """The command that submits the script and prints the job's name."""
        if self.scheduler == "slurm":
            return ["sbatch", "--parsable", str(self.script)]
        return ["qsub", str(self.script)]


def render(job: Job) -> str:
    """The batch file."""
    errand, container = job.errand, job.container
    shown = "the demo" if errand.recipe is None else str(errand.recipe)
    head = _fill(
        f"{job.scheduler}_head.sh",
        what=f"{errand.benchmark} with the engine {errand.engine}: {_one_line(shown)}",
        script=shlex.quote(str(job.script)),
        job_dir=shlex.quote(str(errand.job_dir)),
        directives="\n".join(_slurm(job) if job.scheduler == "slurm" else _pbs(job)),
    )
    again = ["run", "--resume", str(errand.run_dir)]
    inside = '"${CONTAINER[@]}" ' if container is not None else ""
    body = _fill(
        "job.sh",
        run_dir=shlex.quote(str(errand.run_dir)),
        job_dir=shlex.quote(str(errand.job_dir)),
        first=_array([errand.arguments(job.recipe)]),
        again=_array([again]),
        paceline=_array([_program("paceline", container)]),
        container="" if container is None else _array(container.groups()),
        make_home="" if container is None else f" {shlex.quote(str(container.home))}",
        cwd=shlex.quote(str(Path.cwd())),
        setup="".join(f"{line}\n" for line in job.resources.setup),
        ray=_ray(job, inside) if job.is_spread else "",
        in_container=inside,
    )
    if container is None:
        body = body.replace("CONTAINER=\n", "")
    return head + body


def shell_words(groups: Sequence[Sequence[str]], indent: str = "    ") -> str:
    """Words quoted for a shell, a group a line."""
    return f" \\\n{indent}".join(shlex.join(group) for group in groups)


def _refuse_for_pbs(asked: Resources) -> None:
    if asked.qos is not None:
        raise InputError("--qos is Slurm's; PBS has queues.", hint="--partition QUEUE")
    if asked.gpus_per_node is not None and ":" in asked.gpus_per_node:
        raise InputError(
            f"--gpus-per-node {asked.gpus_per_node}: PBS counts GPUs without their kind.",
            hint="--gpus-per-node 8, and --directive '-l ...' for what your site asks beside",
        )


def _fill(template: str, **values: str) -> str:
    text = (resources.files("paceline.operate") / "templates" / template).read_text()
    return _Marked(text).substitute(values)


class _Marked(Template):
    delimiter = "@@"


def _array(groups: Sequence[Sequence[str]]) -> str:
    """A bash array; one of several groups has a line for each."""
    quoted = [" ".join(map(_quoted, group)) for group in groups]
    if len(quoted) == 1:
        return f"({quoted[0]})"
    lines = "".join(f"    {line}\n" for line in quoted)
    return f"(\n{lines})"


def _quoted(word: str) -> str:
    """Quoted for a shell; a comma as well, which readers of arrays take for a mistake."""
    plain = shlex.quote(word)
    return f"'{word}'" if plain == word and "," in word else plain


def _program(name: str, container: Container | None) -> list[str]:
    """How a program of our environment is called: by this Python, or by its name in an image."""
    if container is not None:
        return [name]
    module = {"paceline": "paceline", "ray": "ray.scripts.scripts"}[name]
    return [sys.executable, "-m", module]


def _ray(job: Job, inside: str) -> str:
    port = job.resources.ray_port
    return _fill(
        "ray.sh",
        ray=_array([_program("ray", job.container)]),
        port=_RAY_PORT if port is None else str(port),
        in_container=inside,
        tries=str(_RAY_TRIES),
    )


def _slurm(job: Job) -> list[str]:
    asked = job.resources
    folder, _, name = job.output.rpartition("/")
    output = f"{folder.replace('%', '%%')}/{name.format('%j')}"
    lines = [
        f"--job-name={asked.job_name}",
        f"--nodes={asked.nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={asked.gpus_per_node}" if asked.num_gpus else None,
        f"--cpus-per-task={asked.cpus_per_node}" if asked.cpus_per_node else None,
        f"--mem={asked.memory}" if asked.memory else None,
        "--exclusive" if asked.exclusive else None,
        f"--time={asked.time}" if asked.time else None,
        f"--account={asked.account}" if asked.account else None,
        f"--partition={asked.partition}" if asked.partition else None,
        f"--qos={asked.qos}" if asked.qos else None,
        f'--output="{output}"',
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{_WARNED_S}",
        *asked.directives,
    ]
    return [f"#SBATCH {line}" for line in lines if line]


def _pbs(job: Job) -> list[str]:
    asked = job.resources
    chunk = [f"select={asked.nodes}", "mpiprocs=1"]
    chunk += [f"ncpus={asked.cpus_per_node}"] if asked.cpus_per_node else []
    chunk += [f"ngpus={asked.num_gpus}"] if asked.num_gpus else []
    if asked.memory:  # Slurm's bare number is in MB
        chunk.append(f"mem={asked.memory.lower()}{'mb' if asked.memory.isdigit() else 'b'}")
    lines = [
        f"-N {asked.job_name}",
        f"-l {':'.join(chunk)}",
        f"-l place=scatter{':excl' if asked.exclusive else ''}",
        f"-l walltime={_clock(asked.time)}" if asked.time else None,
        f"-A {asked.account}" if asked.account else None,
        f"-q {asked.partition}" if asked.partition else None,
        "-j oe",
        f'-o "{job.output}"',
        "-r y",
        *asked.directives,
    ]
    return [f"#PBS {line}" for line in lines if line]


def _clock(time: str) -> str:
    minutes, seconds = divmod(seconds_of(time), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
