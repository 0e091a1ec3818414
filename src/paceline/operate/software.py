"""Python, the packages that the recipe's engine needs, and LoadGen's wheel against the round."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from paceline.engines.server_presets import PRESETS
from paceline.errors import LoadGenError
from paceline.harness.loadgen import wheel
from paceline.mlperf import rules
from paceline.operate.cards import driver_problem
from paceline.operate.finding import Finding, blocker, fine, warning
from paceline.operate.subject import Asked
from paceline.submission.system_nvml import Health

__all__ = ["loadgen_finding", "software_findings"]

# Module, and the extra that installs it, by engine.
_NEEDED: dict[str, tuple[tuple[str, str], ...]] = {
    "endpoint": (("aiohttp", "endpoint"), ("orjson", "endpoint")),
    "fake": (),
    "managed": (("aiohttp", "endpoint"), ("orjson", "endpoint")),
    "native": (("torch", "demo"), ("safetensors", "demo"), ("gguf", "demo")),
    "reference": (("torch", "demo"), ("transformers", "demo"), ("accelerate", "demo")),
}
# Servers that are modules of a Python.
_SERVER_MODULES = {"sglang": "sglang", "llama-cpp-python": "llama_cpp"}


def software_findings(
    asked: Asked | None, found: Sequence[Health], *, on_cards: bool
) -> list[Finding]:
    """Python, packages, LoadGen and the server's program."""
    findings = [
        fine(
            "python",
            f"{platform.python_version()}, {sys.executable}",
            why="paceline needs Python 3.11 or newer",
        ),
        loadgen_finding(asked),
    ]
    if asked is not None:
        findings += [_packages(asked), *_torch(asked, found, on_cards=on_cards), *_server(asked)]
    return findings


def loadgen_finding(asked: Asked | None) -> Finding:
    """Whether the installed LoadGen carries the seeds of the round."""
    name = "loadgen"
    why = "a result made with another round's seeds is refused by the checker"
    try:
        installed = wheel()
        if asked is not None and asked.is_round_given:
            installed.require(asked.config.round)
    except LoadGenError as error:
        return blocker(
            name, error.message, why=why, mend=error.hint or "pip install mlcommons-loadgen"
        )
    newest = next(reversed(rules.ROUNDS))
    if installed.round is None:
        return blocker(
            name,
            f"mlcommons-loadgen {installed.version} carries the seeds of no known round",
            why=why,
            mend=f"pip install mlcommons-loadgen=={rules.round_rules(newest).wheel}",
        )
    seen = f"mlcommons-loadgen {installed.version}, the seeds of round {installed.round}"
    if installed.round != newest and not (asked and asked.is_round_given):
        return warning(
            name,
            f"{seen}; the newest known is {newest}",
            why=why,
            mend=f"pip install mlcommons-loadgen=={rules.round_rules(newest).wheel}   "
            f"or say that the older one is meant: --round {installed.round}",
        )
    return fine(name, seen, why=why)


def _packages(asked: Asked) -> Finding:
    engine = asked.config.engine
    needed = _NEEDED[engine]
    name, why = "packages", f"the {engine} engine imports them"
    lost = [(module, extra) for module, extra in needed if not _is_there(module)]
    if lost:
        extras = ",".join(dict.fromkeys(extra for _, extra in lost))
        return blocker(
            name,
            f"not installed: {', '.join(module for module, _ in lost)}",
            why=why,
            mend=f"pip install 'paceline[{extras}]' -c constraints.txt",
        )
    listed = ", ".join(f"{module} {_version(module)}" for module, _ in needed)
    return fine(name, listed or f"the {engine} engine needs none", why=why)


def _torch(asked: Asked, found: Sequence[Health], *, on_cards: bool) -> list[Finding]:
    """PyTorch's CUDA against the driver; read from its files, as importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if not on_cards or not found or spec is None or spec.origin is None:
        return []
    if asked.config.engine not in ("native", "reference"):
        return []
    name, why = "torch", "PyTorch computes on a card only when it was built for it"
    text = (Path(spec.origin).parent / "version.py").read_text()
    built = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", text, re.MULTILINE)
    version = _version("torch")
    if built is None:
        return [
            blocker(
                name,
                f"torch {version} is built without CUDA",
                why=why,
                mend="pip install --force-reinstall torch   (PyPI's wheel for Linux has CUDA)",
            )
        ]
    if problem := driver_problem(built[1], found):
        return [
            blocker(
                name,
                f"torch {version} has CUDA {built[1]}, which needs driver {problem[0]} or newer; "
                f"here is {problem[1]}",
                why=why,
                mend="install a newer driver (sudo), or a torch built for an older CUDA",
            )
        ]
    return [fine(name, f"torch {version}, CUDA {built[1]}, as the driver allows", why=why)]


def _server(asked: Asked) -> list[Finding]:
    if asked.config.engine != "managed":
        return []
    preset = PRESETS[asked.settings.preset]
    program = asked.settings.executable or preset.executable
    name, why = "server program", "the run starts it, and ends where it is not"
    path = shutil.which(program)
    if path is None:
        return [
            blocker(
                name,
                f"{program}: not on PATH",
                why=why,
                mend=f"--set engine.managed.executable=PATH of {asked.settings.preset}'s program, "
                "or activate its environment",
            )
        ]
    module = _SERVER_MODULES.get(asked.settings.preset)
    if module is not None and Path(path) == Path(sys.executable) and not _is_there(module):
        return [
            blocker(
                name,
                f"{path} has no package {module}",
                why=why,
                mend="install it in an environment of its own, and --set "
                "engine.managed.executable=THAT/bin/python",
            )
        ]
    return [fine(name, path, why=why)]


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
