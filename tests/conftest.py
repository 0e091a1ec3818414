"""What tests share: the command line as a user runs it, and markers that say why they skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import Outcome, Paceline

from standstill import Repeater

# Set before torch is imported: spinning threads of two test workers would fight for two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without compiled files each of a thousand processes compiles all that it imports, which takes
# longer than most tests. Where none are wanted beside sources, they lie in the environment.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(sys.prefix, "pycache")))
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"]

REPOSITORY = Path(__file__).parent.parent
FIXTURES = REPOSITORY.parent / "shared" / "fixtures"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Repeater(), "standstills")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; this machine has none"))


@pytest.fixture
def paceline(tmp_path: Path) -> Paceline:
    """Runs the command line in a fresh process, in a folder of the test's own."""

    def call(*arguments: object, timeout_s: float = 300, **options: Any) -> Outcome:
        command = [sys.executable, "-m", "paceline", *map(str, arguments)]
        options.setdefault("cwd", tmp_path)
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, **options
        )
        return Outcome(finished)

    return call


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """Real v5.1 logs that the project does not ship."""
    if not FIXTURES.is_dir():
        pytest.skip("the third-party logs are not on this machine")
    return FIXTURES
