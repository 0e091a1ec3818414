"""Write docs/cli.md from --help. `make docs` runs it; a test compares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
VERBS = (
    (),
    ("run",),
    ("explain",),
    ("show",),
    ("system",),
    ("submit",),
    ("check",),
    ("score",),
    ("push",),
    ("report",),
    ("site",),
    ("mlcr",),
    ("quantize",),
    ("compare",),
    ("model",),
    ("model", "verify"),
    ("model", "describe"),
    ("model", "fetch"),
    ("data",),
    ("data", "build"),
    ("data", "verify"),
    ("data", "describe"),
    ("data", "synthetic"),
    ("bench",),
    ("bench", "harness"),
    ("bench", "scoring"),
    ("bench", "data"),
    ("bench", "check"),
    ("bench", "engine"),
)
HEAD = """# The command line

Made from `--help` by `make docs`; do not edit.

Exit codes: 0 VALID and PASS, 1 ran but INVALID or FAIL, 2 the user's input, 3 the environment.
"""


def cli_text() -> str:
    """docs/cli.md as it should be."""
    sections = [HEAD]
    for verb in VERBS:
        command = [sys.executable, "-m", "paceline", *verb, "--help"]
        shown = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "90", "TERMINAL_WIDTH": "90"},
        ).stdout
        title = " ".join(("paceline", *verb))
        sections.append(f"## {title}\n\n```\n{shown.strip()}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(cli_text())
