"""Kernels against their definitions: addresses and masks here, values on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .kernel_checks import CHECKS, run_check

SCRIPT = Path(__file__).parent / "kernel_checks.py"


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: no interpreter"
)
def test_every_kernel_agrees_with_its_definition_on_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rounds", "4"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_every_kernel_agrees_with_its_definition_on_a_gpu(name: str) -> None:
    run_check(name, device="cuda", rounds=6)
