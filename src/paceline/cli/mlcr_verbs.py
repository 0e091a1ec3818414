"""What `paceline mlcr` does: say which commands an `mlcr` command becomes, and run them."""

from __future__ import annotations

import difflib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from paceline.cli.mlcr_run import ROOT, translate_run
from paceline.cli.mlcr_submit import (
    translate_accuracy,
    translate_dataset,
    translate_generate,
    translate_model,
    translate_push,
)
from paceline.cli.mlcr_words import Step, Translation, Words, read_words
from paceline.errors import EnvironmentProblem, InputError
from paceline.rundir import make_folder, write_atomically

__all__ = ["COMMANDS", "mlcr", "translate"]

COMMANDS: dict[str, tuple[frozenset[str], Callable[[Words, Path], Translation]]] = {
    name: (frozenset(name.split(",")), translation)
    for name, translation in (
        ("run-mlperf,inference", translate_run),
        ("generate,inference,submission", translate_generate),
        ("push,github,mlperf,inference,submission", translate_push),
        ("process,mlperf,accuracy", translate_accuracy),
        ("get,dataset,openorca", translate_dataset),
        ("get,ml-model,llama2-70b", translate_model),
    )
}
# Words that MLC's documents put between the tags that count.
_FILLERS = {"preprocessed", "original", "raw", "language-processing", "mlperf", "llama2", "script"}


def mlcr(arguments: list[str], run: Callable[[list[str]], Any], *, dry_run: bool) -> None:
    """Print each step of the command, and take it unless it is a dry run.

    `run` is the command line itself: it runs one of paceline's own commands and raises SystemExit.
    """
    made = translate(arguments, Path())
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    for step in made.steps:
        typer.echo(step.text)
        if not dry_run:
            sys.stdout.flush()
            _take(step, run)


def translate(arguments: list[str], cwd: Path) -> Translation:
    """What a command becomes. Raises InputError for one that is not known or not followed."""
    words = read_words(arguments)
    for required, translation in COMMANDS.values():
        if required <= words.tags and words.tags <= required | _FILLERS:
            return translation(words, cwd)
    asked = ",".join(arguments[0].split(",")) if arguments else ""
    close = difflib.get_close_matches(asked, list(COMMANDS), n=1, cutoff=0.4)
    guess = f"did you mean {close[0]}? " if close else ""
    raise InputError(
        f"mlcr: there is no command {asked!r} here.", hint=f"{guess}known: {'; '.join(COMMANDS)}"
    )


def _take(step: Step, run: Callable[[list[str]], Any]) -> None:
    if step.kind == "paceline":
        try:
            run(list(step.arguments))
        except SystemExit as end:
            if end.code not in (0, None):
                raise
        return
    first, second = step.arguments
    try:
        if step.kind == "remember":
            make_folder(ROOT)
            write_atomically(ROOT / f"{first}.path", f"{second}\n")
        elif step.kind == "move":
            Path(first).rename(second)
        else:
            shutil.copyfile(first, second)
    except OSError as error:
        raise EnvironmentProblem(f"{step.text}: {error.strerror}.") from error
