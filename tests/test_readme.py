"""What the documents promise is run, or compared with the code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
LIFE = (REPOSITORY / "docs/life-of-a-request.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


def console_sessions() -> list[list[str]]:
    return [
        [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
        for block in CONSOLE
    ]


@pytest.mark.parametrize("session", console_sessions(), ids=lambda session: session[0][:40])
def test_every_console_session_of_the_readme_runs(session: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    for line in session:
        program, *arguments = shlex.split(line)
        assert program == "paceline", line
        finished = subprocess.run(
            [sys.executable, "-m", "paceline", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert finished.returncode == 0, f"{line}\n{finished.stdout}\n{finished.stderr}"


def test_the_readme_has_sessions_to_run() -> None:
    assert sum(map(len, console_sessions())) >= 5


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(paceline\.[\w.]+)`", LIFE))))
def test_every_name_in_the_life_of_a_request_exists(name: str) -> None:
    module, found = name.split("."), None
    for length in range(len(module), 0, -1):
        try:
            found = importlib.import_module(".".join(module[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in module[length:]:
            found = getattr(found, attribute)
        break
    assert found is not None


def test_docs_cli_is_what_help_prints() -> None:
    spec = importlib.util.spec_from_file_location(
        "generate_docs", REPOSITORY / "tools/generate_docs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    generate_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_docs)
    written = (REPOSITORY / "docs/cli.md").read_text()
    assert written == generate_docs.cli_text(), "run: make docs"
    shown = subprocess.run(
        [sys.executable, "-m", "paceline", "bench", "endpoint", "--help"],
        env={**os.environ, "COLUMNS": "90"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"## paceline bench endpoint\n\n```\n{shown.stdout.strip()}\n```\n" in written


def test_every_document_that_the_readme_names_exists() -> None:
    for name in re.findall(r"\b(?:docs|recipes)/[\w.-]*", (REPOSITORY / "README.md").read_text()):
        assert (REPOSITORY / name).exists(), name
