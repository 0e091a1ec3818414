"""What the machine allows one process: locked memory, open files, shared memory, host memory."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Sequence
from pathlib import Path

from paceline.engines.server_presets import PRESETS
from paceline.operate.finding import Finding, blocker, fine, unknown, warning
from paceline.operate.subject import Asked
from paceline.submission.system_host import Host
from paceline.submission.system_parse import size_text

__all__ = ["available_memory", "host_memory", "limit_findings"]

# Name and bytes of each card that the run uses.
Cards = Sequence[tuple[str, int]]

_MIB, _GIB = 1 << 20, 1 << 30
# UCX of TensorRT-LLM's harness gave up at 8 MiB of locked memory.
_LOCKED_LEAST = 64 * _MIB
_FILES_LEAST, _FILES_SPARE = 4096, 512
# Docker gives a container 64 MiB of shared memory; worker processes of a server exchange more.
_SHM_LEAST, _SHM_WISE = 128 * _MIB, 8 * _GIB


def limit_findings(
    host: Host, *, asked: Asked | None, cards: Cards, model_bytes: int | None
) -> list[Finding]:
    """The limits of this process, against what the recipe's engine asks for."""
    return [
        _locked(host, asked=asked, cards=cards),
        _files(asked, cards),
        _shared(host, asked=asked, cards=cards),
        host_memory(host, asked=asked, cards=cards, model_bytes=model_bytes),
    ]


def _locked(host: Host, *, asked: Asked | None, cards: Cards) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    name = "locked memory"
    why = "network cards and MPI lock the memory they send; UCX ends a run that may not"
    if soft == resource.RLIM_INFINITY:
        return fine(name, "ulimit -l: unlimited", why=why)
    seen = f"ulimit -l: {soft // 1024} KiB"
    fabric = host.names("/sys/class/infiniband")
    is_locking = getattr(getattr(asked, "settings", None), "preset", "") == "trtllm"
    if not fabric and not is_locking and not cards:
        return fine(name, f"{seen}; nothing here needs more", why=why)
    lift = (
        "ulimit -l unlimited"
        if hard == resource.RLIM_INFINITY
        else (
            f"echo '{_user()} - memlock unlimited' | sudo tee "
            "/etc/security/limits.d/memlock.conf   then log in again; docker run --ulimit "
            "memlock=-1; Slurm: LimitMEMLOCK=infinity in slurmd's unit"
        )
    )
    if soft < _LOCKED_LEAST and (fabric or is_locking):
        reason = f"{', '.join(fabric)} is here" if fabric else "the recipe runs TensorRT-LLM"
        return blocker(name, f"{seen}; {reason}", why=why, mend=lift)
    return warning(name, seen, why=why, mend=lift)


def _files(asked: Asked | None, cards: Cards) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    name, why = "open files", "each request in flight holds a connection, which is an open file"
    seen = f"ulimit -n: {soft}"
    wanted = _connections(asked, cards) + _FILES_SPARE
    target = max(wanted, 65536)
    if hard == resource.RLIM_INFINITY or hard >= max(wanted, _FILES_LEAST):
        mend = f"ulimit -n {target if hard == resource.RLIM_INFINITY else min(target, hard)}"
    else:
        mend = (
            f"echo '{_user()} - nofile {target}' | sudo tee /etc/security/limits.d/nofile.conf   "
            "then log in again"
        )
    if soft < wanted:
        return blocker(name, f"{seen}; the run opens up to {wanted}", why=why, mend=mend)
    if soft < _FILES_LEAST:
        return warning(name, f"{seen}; below {_FILES_LEAST}", why=why, mend=mend)
    return fine(name, f"{seen}; the run opens up to {wanted}" if asked else seen, why=why)


def _user() -> str:
    return os.environ.get("USER", "USER")


def _connections(asked: Asked | None, cards: Cards) -> int:
    """Most connections that the recipe's engine keeps open at once."""
    if asked is None or asked.config.engine not in ("endpoint", "managed"):
        return 0
    settings = asked.settings
    if asked.config.engine == "endpoint":
        return int(settings.concurrency * len(settings.urls))
    group = settings.tensor_parallel * settings.pipeline_parallel
    servers = settings.servers or max(1, len(cards) // group)
    memory_gib = sum(size for _, size in cards[:group]) / _GIB
    rows = PRESETS[settings.preset].budgets
    _, num_seqs, _ = next(row for row in rows if memory_gib >= row[0])
    # Without a number, a server gets a quarter more than it batches.
    return int(servers * (settings.concurrency or (settings.max_num_seqs or num_seqs) * 5 // 4))


def _shared(host: Host, *, asked: Asked | None, cards: Cards) -> Finding:
    name, why = "shared memory", "worker processes and NCCL exchange data in /dev/shm"
    try:
        held = os.statvfs(host.root / "dev/shm")
    except OSError:
        return unknown(name, "there is no /dev/shm", why=why, mend="mount | grep shm")
    free, whole = held.f_bavail * held.f_frsize, held.f_blocks * held.f_frsize
    # Named for the reader; no file is made there.
    seen = f"/dev/shm: {size_text(free, binary=True)} of {size_text(whole, binary=True)} free"  # noqa: S108
    has_workers = len(cards) > 1 or (asked is not None and asked.config.engine == "managed")
    mend = (
        "sudo mount -o remount,size=32G /dev/shm   (docker run --shm-size=32g; "
        "ls -l /dev/shm shows what fills it)"
    )
    if has_workers and free < _SHM_LEAST:
        return blocker(name, seen, why=why, mend=mend)
    if has_workers and len(cards) > 1 and free < _SHM_WISE:
        return warning(name, seen, why=why, mend=mend)
    return fine(name, seen, why=why)


def host_memory(
    host: Host, *, asked: Asked | None, cards: Cards, model_bytes: int | None
) -> Finding:
    """Memory that is free, against what the engine will take of it."""
    name, why = "host memory", "a process that takes more than there is is killed without a word"
    free, source = available_memory(host)
    if free is None:
        return unknown(name, "/proc/meminfo does not say", why=why, mend="free -g")
    seen = f"{size_text(free, binary=True)} available ({source})"
    if model_bytes is None or asked is None or not asked.needs_model:
        return fine(name, seen, why=why)
    on_cards = bool(cards) and getattr(asked.settings, "device", "cuda") != "cpu"
    size = size_text(model_bytes, binary=True)
    if on_cards:
        if free < model_bytes // 4:
            return warning(
                name,
                f"{seen}; the model's files are {size}",
                why="weights pass through the host's memory; with little of it they load slowly",
                mend="ps aux --sort=-rss | head   shows who holds it; in Slurm, --mem=0",
            )
        return fine(name, f"{seen}; the model's files are {size}", why=why)
    if free < model_bytes:
        return blocker(
            name,
            f"{seen}; the model's files are {size}, and no less on the CPU",
            why=why,
            mend="ps aux --sort=-rss | head   shows who holds it; in Slurm, --mem=0; or a smaller "
            "model",
        )
    return fine(name, f"{seen}; the model's files are {size}", why=why)


def available_memory(host: Host) -> tuple[int | None, str]:
    """Bytes that can be had, and what says so: the machine, or a container's limit."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", host.read("/proc/meminfo"), re.MULTILINE)
    free = int(found[1]) * 1024 if found else None
    own = host.read("/proc/self/cgroup").rpartition(":")[2].strip("/")
    for folder in dict.fromkeys((Path("/sys/fs/cgroup") / own, Path("/sys/fs/cgroup"))):
        most, used = host.read(f"{folder}/memory.max"), host.read(f"{folder}/memory.current")
        if most.isdecimal() and used.isdecimal():
            left = max(0, int(most) - int(used))
            if free is None or left < free:
                return left, "the limit of this container or job"
    return free, "/proc/meminfo"
