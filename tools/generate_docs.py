"""Write docs/cli.md from --help. `make docs` runs it; a test compares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from typer.main import get_command

from paceline.cli import app

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# The command line

Made from `--help` by `make docs`; do not edit.

Exit codes: 0 VALID and PASS, 1 ran but INVALID or FAIL, 2 the user's input, 3 the environment,
or stopped by Ctrl-C or SIGTERM.
"""


def helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """Every verb that help shows with its help, the program itself first."""
    context = typer.Context(command, info_name=name, parent=parent)
    yield context.command_path, command.get_help(context)
    for verb_name, verb in getattr(command, "commands", {}).items():
        if not verb.hidden:
            yield from helps(verb, verb_name, context)


def cli_text() -> str:
    """docs/cli.md as it should be, whatever the terminal's width."""
    sections = [HEAD]
    with mock.patch.dict(os.environ, {"COLUMNS": "90"}):
        for path, text in helps(get_command(app), "paceline"):
            sections.append(f"## {path}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(cli_text())
