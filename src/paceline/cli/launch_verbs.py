"""What `paceline launch` does."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from paceline.cli import verbs
from paceline.errors import EnvironmentProblem, InputError, InterruptedRun, LoadGenError
from paceline.harness import loadgen
from paceline.operate import launch_follow
from paceline.operate.launch_container import Container, gpus_here, require_image
from paceline.operate.launch_plan import Errand, Resources, errand, errand_of
from paceline.operate.launch_render import SCHEDULERS, Job, render, shell_words
from paceline.rundir import RunDir, make_folder

__all__ = ["launch"]

_PLACES = ("local", *SCHEDULERS, "follow")
_CACHE = Path("~/.cache/paceline")


def launch(
    words: Sequence[str],
    *,
    run: Mapping[str, Any],
    container: Mapping[str, Any],
    job: Mapping[str, Any],
    submits: bool,
    every_s: float,
    dry_run: bool,
) -> None:
    """`paceline launch`."""
    place, rest = (words[0], words[1:]) if words and words[0] in _PLACES else ("local", words)
    given = [name for name, value in job.items() if value is not None]
    if place == "follow":
        _refuse_all(run, container, given)
        _follow_again(rest, every_s=every_s, dry_run=dry_run)
        return
    image, recipe = _image_and_recipe(rest, container)
    asked = _errand(recipe, run)
    resources = Resources(**{name: job[name] for name in given})
    inside = _container(image, container, asked, place=place, resources=resources)
    for note in asked.notes:
        typer.echo(f"note: {note}", err=True)
    if place == "local":
        if given or submits:
            flag = "submit" if submits else given[0].replace("_", "-")
            raise InputError(
                f"--{flag} belongs to a scheduler, and none is named.",
                hint="paceline launch slurm ..., or launch pbs ...",
            )
        _run_here(asked, inside, dry_run=dry_run)
        return
    planned = Job(scheduler=place, errand=asked, resources=resources, container=inside)
    _give_away(planned, submits=submits, every_s=every_s, dry_run=dry_run)


def _give_away(planned: Job, *, submits: bool, every_s: float, dry_run: bool) -> None:
    """Write a job's file; submit and follow it if asked to."""
    inside = planned.container
    if dry_run:
        typer.echo(f"# {planned.script}\n{render(planned)}")
        typer.echo(f"# submit it\n{shlex.join(planned.submission)}")
        return
    if inside is not None:
        make_folder(inside.home)
    launch_follow.write(planned)
    typer.echo(str(planned.script))
    if not submits:
        typer.echo(f"submit it: {shlex.join(planned.submission)}", err=True)
        return
    submitted = launch_follow.submit(planned)
    typer.echo(f"submitted: job {submitted.job}", err=True)
    _follow(submitted, every_s=every_s)


def _image_and_recipe(
    rest: Sequence[str], container: Mapping[str, Any]
) -> tuple[str | None, Path | None]:
    """The words that are left: a recipe ends in .toml, and what does not is the image."""
    recipes = [word for word in rest if word.endswith(".toml")]
    others = [word for word in rest if not word.endswith(".toml")]
    image = container["image"]
    if others and container["container"] is not None and image is None:
        image = others.pop(0)
    if len(recipes) > 1 or others:
        odd = (others or recipes[1:])[0]
        raise InputError(
            f"paceline launch: {odd!r} is neither a place, nor an image, nor the one recipe.",
            hint=f"places: {', '.join(_PLACES)}; a recipe ends in .toml; --container KIND IMAGE",
        )
    return image, Path(recipes[0]) if recipes else None


def _errand(recipe: Path | None, run: Mapping[str, Any]) -> Errand:
    if run["resume"] is None:
        try:
            wheel_round = loadgen.wheel().round
        except LoadGenError:
            wheel_round = None  # where the job runs may have one
        return errand(
            recipe,
            overrides=run["overrides"],
            flags=run["flags"],
            out=run["out"],
            wheel_round=wheel_round,
        )
    given = [name for name, value in run["flags"].items() if value is not None]
    if recipe is not None or run["out"] is not None or run["overrides"] or given:
        raise InputError(
            "--resume takes no recipe, --out, --set or other settings: the run keeps its own.",
            hint=f"paceline launch ... --resume {run['resume']}",
        )
    return errand_of(run["resume"])


def _container(
    image: str | None,
    given: Mapping[str, Any],
    asked: Errand,
    *,
    place: str,
    resources: Resources,
) -> Container | None:
    kind = given["container"]
    if kind is None:
        odd = [name for name in ("image", "gpu", "bind", "cache") if given[name] is not None]
        if odd:
            raise InputError(
                f"--{odd[0]} does nothing without a container.", hint="--container apptainer"
            )
        return None
    if image is None:
        raise InputError(
            f"--container {kind} needs an image.",
            hint=f"--container {kind} IMAGE, or --image IMAGE",
        )
    gpus = given["gpu"]
    if gpus is None:
        gpus = gpus_here() if place == "local" else "cuda" if resources.num_gpus else "none"
    home = (given["cache"] or _CACHE).expanduser().resolve()
    recipes = [asked.recipe] if place == "local" and asked.recipe is not None else []
    binds = [path.expanduser().resolve() for path in given["bind"] or ()]
    local_image = kind == "apptainer" and Path(image).expanduser().exists()
    return Container(
        kind=kind,
        image=str(Path(image).expanduser().resolve()) if local_image else image,
        gpus=gpus,
        reads=tuple(dict.fromkeys([*asked.reads, *recipes, *binds])),
        writes=(asked.run_dir, *(() if place == "local" else (asked.job_dir,)), home),
        home=home,
        has_network=asked.needs_network,
        is_spread=place != "local" and asked.is_spread,
    )


def _run_here(asked: Errand, inside: Container | None, *, dry_run: bool) -> None:
    """Run in a container on this machine; ends as the run does."""
    if inside is None:
        raise InputError(
            "paceline launch local without --container is what `paceline run` does.",
            hint=shlex.join(["paceline", *asked.arguments(asked.recipe)]),
        )
    missing = [path for path in asked.reads if not path.exists()]
    if missing and not dry_run:
        raise InputError(f"There is no {missing[0]}.", hint="--model PATH, --data PATH")
    command = ["paceline", *asked.arguments(asked.recipe)]
    if dry_run:
        typer.echo(shlex.join(["mkdir", "-p", str(asked.run_dir), str(inside.home)]))
        typer.echo(shell_words([*inside.groups(), command]))
        return
    require_image(inside, _is_well)
    make_folder(asked.run_dir)
    make_folder(inside.home)
    status = _wait_for(subprocess.Popen(inside.wrap(command)))
    if status in (125, 126, 127, 255):
        raise EnvironmentProblem(
            f"{inside.kind} could not start the run (exit {status}).",
            hint=f"paceline launch --dry-run ... shows the command; is paceline in {inside.image}?",
        )
    if status not in (0, 1, 2):
        words = ["--container", inside.kind, "--image", inside.image, "--resume"]
        again = shlex.join(["paceline", "launch", *words, str(asked.run_dir)])
        typer.echo(f"in a container again: {again}", err=True)
    raise typer.Exit(status if status in (0, 1, 2) else 3)


def _wait_for(child: subprocess.Popen[bytes]) -> int:
    """Wait until the container has ended, whatever happens: killing its program would lose it.

    Ctrl-C reaches the run through the terminal; SIGTERM is handed on.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_well(command: list[str]) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def _refuse_all(run: Mapping[str, Any], container: Mapping[str, Any], given: list[str]) -> None:
    """`follow` takes a folder and nothing else."""
    odd = [name for name, value in run["flags"].items() if value is not None] + given
    odd += [name for name in ("out", "resume", "overrides") if run[name]]
    odd += [name for name, value in container.items() if value is not None]
    if odd:
        raise InputError(
            f"paceline launch follow takes a folder alone; {odd[0]} does nothing there.",
            hint="paceline launch follow RUN_DIR.job",
        )


def _follow_again(rest: Sequence[str], *, every_s: float, dry_run: bool) -> None:
    if len(rest) != 1:
        raise InputError(
            "paceline launch follow needs the job's folder.",
            hint="paceline launch follow RUN_DIR.job",
        )
    job = launch_follow.followed(Path(rest[0]).resolve())
    if dry_run:
        typer.echo(shlex.join(launch_follow.state_command(job)))
        return
    _follow(job, every_s=every_s)


def _follow(job: launch_follow.Followed, *, every_s: float) -> None:
    """Follow a job to its verdict; ends as the run did. Ctrl-C leaves the job alone."""
    folder = shlex.quote(str(job.script.parent))
    again = f"paceline launch follow {folder}"
    try:
        state = launch_follow.follow(job, lambda text: typer.echo(text, err=True), every_s=every_s)
    except KeyboardInterrupt:
        raise InterruptedRun(
            f"Stopped following; job {job.job} goes on.",
            hint=f"{again}   or, to end it: {launch_follow.cancel_command(job)}",
        ) from None
    if RunDir(job.run_dir).path.joinpath("verdict.json").exists():
        status = RunDir.open(job.run_dir).read_manifest()["status"]
        if status == "COMPLETE":
            verbs.show(job.run_dir, as_json=False)
    raise EnvironmentProblem(
        f"Job {job.job} ended without a verdict: {state.name} {state.detail}".rstrip() + ".",
        hint=f"see {job.output}; to go on where it ended: "
        f"{shlex.join(launch_follow.submission(job))}   then {again}",
    )
