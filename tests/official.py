"""The official checker, where a checkout of mlcommons/inference is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def official(tree: Path, round_name: str) -> str:
    """What the official checker logs of a tree, errors and the last line."""
    checkout = os.environ.get("MLPERF_INFERENCE")
    if checkout is None:
        pytest.skip("MLPERF_INFERENCE names no checkout of mlcommons/inference")
    command = [sys.executable, "-m", "submission_checker.main", "--input", str(tree.resolve())]
    finished = subprocess.run(
        [*command, "--version", round_name, "--csv", str(tree.resolve().parent / "summary.csv")],
        cwd=Path(checkout) / "tools/submission",
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (finished.stdout + finished.stderr).splitlines()
    return "\n".join(line for line in lines if "ERROR" in line or "SUMMARY" in line)
