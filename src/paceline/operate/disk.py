"""The disks: room and speed where runs are written, and speed where the model lies."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from paceline.harness import verdict
from paceline.operate.finding import Finding, blocker, fine, unknown, warning
from paceline.operate.subject import Asked
from paceline.submission.system_parse import size_text

__all__ = ["bytes_needed", "disk_findings"]

_MIB = 1 << 20
_TEST_BYTES, _TEST_S, _BLOCKS_A_SYNC = 64 * _MIB, 1.0, 8
# A token is 8 hexadecimal digits in LoadGen's log and 8 in the journal; both are also packed.
_BYTES_A_TOKEN, _BYTES_A_SAMPLE, _BYTES_A_TEST = 24, 2048, 20 * _MIB
_FREE_WISE = 5 * 10**9
_SLOW_WRITE, _SLOW_READ = 20e6, 200e6


def bytes_needed(asked: Asked) -> int:
    """More than the recipe's run can write: every answer as long as it may be."""
    benchmark, tests = asked.benchmark, len(verdict.tests_of(asked.config.mode))
    answer = benchmark.max_new_tokens * _BYTES_A_TOKEN + _BYTES_A_SAMPLE
    return tests * (asked.config.num_samples * answer + _BYTES_A_TEST)


def disk_findings(
    out: Path, *, asked: Asked | None, environment: Mapping[str, str]
) -> list[Finding]:
    """Room and speed of the disk that holds `out`, and how fast the model is read."""
    folder = _existing(out)
    findings = [_room(folder, asked), *_write_speed(folder)]
    if temporary := _temporary(environment):
        findings.append(temporary)
    model = asked.model_folder if asked else None
    shards = sorted(model.glob("*.safetensors"), key=lambda p: -p.stat().st_size) if model else []
    if shards:
        findings.append(_read_speed(shards[0], sum(shard.stat().st_size for shard in shards)))
    return findings


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


def _room(folder: Path, asked: Asked | None) -> Finding:
    name, why = "disk room", "a full disk ends a run, and what it measured"
    usage, held = shutil.disk_usage(folder), os.statvfs(folder)
    seen = f"{folder}: {size_text(usage.free)} of {size_text(usage.total)} free"
    mend = (
        f"du -xh {folder} | sort -h | tail   then remove what is not needed; "
        "or --out DIR on another disk"
    )
    need = bytes_needed(asked) if asked else None
    if need is not None:
        seen += f"; the recipe's run writes at most {size_text(need)}"
    if usage.free < (need or 0):
        return blocker(name, seen, why=why, mend=mend)
    if held.f_files and held.f_favail < 1000:
        return blocker(
            name, f"{seen}; only {held.f_favail} more files can be made", why=why, mend=mend
        )
    if usage.free < (_FREE_WISE if need is None else 3 * need):
        return warning(name, f"{seen}; that is little for several runs", why=why, mend=mend)
    return fine(name, seen, why=why)


def _write_speed(folder: Path) -> list[Finding]:
    """Write up to 64 MiB, or a quarter of what is free, for a second; read it back."""
    name, why = "disk speed", "logs and answers are written while the clock runs"
    most = max(1, min(_TEST_BYTES, shutil.disk_usage(folder).free // 4) // _MIB)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".paceline-doctor-") as file:
            block, count = os.urandom(_MIB), 0
            begun_s = time.perf_counter()
            while count < most and time.perf_counter() - begun_s < _TEST_S:
                # On the disk every few blocks, so that a slow one is known by its first.
                some = min(_BLOCKS_A_SYNC, most - count)
                file.writelines([block] * some)
                file.flush()
                os.fsync(file.fileno())
                count += some
            written = count * _MIB / (time.perf_counter() - begun_s)
            read = _rate(Path(file.name), count * _MIB)
    except OSError as error:
        return [
            blocker(
                name,
                f"{folder} takes no file of {size_text(_MIB, binary=True)}: {error.strerror}",
                why=why,
                mend=f"ls -ld {folder}; df -h {folder}   then --out DIR where you can write",
            )
        ]
    seen = f"{folder}: writes {written / 1e6:,.0f} MB/s, reads {read / 1e6:,.0f} MB/s"
    if written < _SLOW_WRITE:
        mend = "--out DIR on a disk of this node, not a network's"
        return [warning(name, seen, why=why, mend=mend)]
    return [fine(name, seen, why=why)]


def _rate(path: Path, limit: int) -> float:
    """Bytes a second of reading `limit` bytes, past the page cache where it lets itself be."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun_s, count = time.perf_counter(), 0
        while (
            count < limit
            and time.perf_counter() - begun_s < _TEST_S
            and (piece := file.read(min(_MIB, limit - count)))
        ):
            count += len(piece)
    return count / max(time.perf_counter() - begun_s, 1e-9)


def _read_speed(shard: Path, model_bytes: int) -> Finding:
    name, why = "model disk", "every start of the engine reads the whole model"
    try:
        rate = _rate(shard, _TEST_BYTES)
    except OSError as error:
        return unknown(name, f"{shard}: {error.strerror}", why=why, mend=f"ls -l {shard}")
    minutes = model_bytes / rate / 60
    seen = (
        f"{shard.parent}: reads {rate / 1e6:,.0f} MB/s, {size_text(model_bytes)} in "
        f"{minutes:,.1f} min"
    )
    if rate < _SLOW_READ and minutes > 5:
        return warning(
            name,
            seen,
            why=why,
            mend=f"cp -r {shard.parent} /DISK_OF_THIS_NODE/   and --model there",
        )
    return fine(name, seen, why=why)


def _temporary(environment: Mapping[str, str]) -> Finding | None:
    """Compilers and loaders of engines write to the folder for temporary files."""
    folder = Path(environment.get("TMPDIR") or tempfile.gettempdir())
    name, why = "temporary files", "kernels are compiled, and files unpacked, where TMPDIR points"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return blocker(
            name, f"{folder} takes no files", why=why, mend="export TMPDIR=DIR_YOU_CAN_WRITE"
        )
    free = shutil.disk_usage(folder).free
    if free < 10**9:
        return warning(
            name,
            f"{folder}: {size_text(free)} free",
            why=why,
            mend="export TMPDIR=DIR_ON_A_LARGER_DISK",
        )
    return None
