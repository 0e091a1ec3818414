"""A checkpoint from a folder, the Hugging Face hub, or MLCommons' storage, into a folder.

    /path/to/folder                    copied, every file checked
    meta-llama/Llama-2-70b-chat-hf     the hub, with the user's own token (HF_TOKEN)
    https://HOST/metadata/NAME.uri     MLCommons: the text names the folder; NAME.md5 beside it
                                       lists the files and their MD5

Files that are there and whole are not fetched again, so the same command goes on where it was
left. SHA256SUMS is written last: `paceline model verify` reads it.

Source
    mlcommons/r2-downloader 028026a, mlc-r2-downloader.sh: the .uri file, the .md5 beside it, the
    headers of a service account.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paceline.errors import EnvironmentProblem, InputError
from paceline.models.transfer import RemoteFile, download, get_text
from paceline.models.verify import MANIFEST, file_hash, read_manifest, write_manifest
from paceline.rundir import disk_problem, make_folder

__all__ = ["fetch", "listing"]

_HUB = "https://huggingface.co"
# Of a hub's repository; the weights once, as safetensors.
_WANTED = ("*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.md", "*.jinja")
_NOT_WANTED = ("original/*", "*/*", ".*")

Progress = Callable[[float, float | None, str], None]


def listing(source: str, *, revision: str) -> list[RemoteFile]:
    """The files of a remote source.

    Raises
        InputError          there is no such source, or it asks for a token.
        EnvironmentProblem  it cannot be reached; the message says what to carry.
    """
    try:
        if source.startswith(("http://", "https://")):
            return _mlcommons_files(source)
        return _hub_files(source, revision)
    except EnvironmentProblem as error:
        raise EnvironmentProblem(error.message, hint=_what_to_carry(source)) from error


def fetch(source: str, out: Path, *, revision: str, progress: Progress) -> dict[str, Any]:
    """Fetch a checkpoint; returns counts of files and bytes, and of repeated tries.

    Raises
        InputError          the source is none, or a server refuses.
        EnvironmentProblem  a server cannot be reached, or the disk is full.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        make_folder(out)
        return _copy(folder, out, progress)
    files = listing(source, revision=revision)
    make_folder(out)
    _check_room(files, out)
    counts = {"files": len(files), "already_there": 0, "bytes": 0, "tried_again": 0}
    for done, file in enumerate(files):
        if _is_whole(out / file.name, file):
            counts["already_there"] += 1
        else:
            counts["tried_again"] += download(
                file,
                out,
                lambda what, have, total, done=done: progress(  # type: ignore[misc]
                    have, total, f"{what} ({done + 1} of {len(files)})"
                ),
            )
        counts["bytes"] += (out / file.name).stat().st_size
    write_manifest(out, lambda done, total, what: progress(done, total, what))
    return counts


def _copy(folder: Path, out: Path, progress: Progress) -> dict[str, Any]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    if not any(path.suffix in (".safetensors", ".gguf") for path in files):
        raise InputError(f"{folder} holds no checkpoint.", hint="name the folder that was carried")
    carried = folder / MANIFEST
    hashes = read_manifest(carried) if carried.is_file() else {}
    missing = [name for name in hashes if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {missing[0]}, which its {MANIFEST} lists.", hint="carry it as well"
        )
    counts = {"files": len(files), "already_there": 0, "bytes": 0, "tried_again": 0}
    for done, path in enumerate(files):
        progress(done, len(files), path.name)
        wanted = hashes.get(path.name) or file_hash(path, "sha256")
        algorithm = "md5" if len(wanted) == 32 else "sha256"
        target = out / path.name
        if target.is_file() and file_hash(target, algorithm) == wanted:
            counts["already_there"] += 1
        else:
            part = target.with_name(f"{target.name}.part")
            try:
                shutil.copyfile(path, part)
            except OSError as error:
                raise disk_problem(part, error) from error
            if file_hash(part, algorithm) != wanted:
                part.unlink()
                raise InputError(
                    f"{path} has another hash than {MANIFEST} says.", hint="carry it again"
                )
            part.replace(target)
        counts["bytes"] += target.stat().st_size
    write_manifest(out, lambda done, total, what: progress(done, total, what))
    return counts


def _hub_files(name: str, revision: str) -> list[RemoteFile]:
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(
            f"There is no folder {name}, and it is no ORGANISATION/MODEL of a hub.",
            hint="a folder, as meta-llama/Llama-2-70b-chat-hf, or https://HOST/.../NAME.uri",
        )
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = f"{hub}/api/models/{name}/tree/{urllib.parse.quote(revision, safe='')}"
    try:
        entries = json.loads(get_text(address, headers))
        chosen = [entry for entry in entries if entry["type"] == "file" and _wants(entry["path"])]
        files = [
            RemoteFile(
                name=entry["path"],
                url=f"{hub}/{name}/resolve/{urllib.parse.quote(revision, safe='')}/"
                f"{urllib.parse.quote(entry['path'])}",
                size=int(entry["size"]),
                digest=(entry.get("lfs") or {}).get("oid"),
                headers=headers,
            )
            for entry in chosen
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentProblem(f"{hub} answered {address} with what is no list.") from error
    if not any(file.name.endswith(".safetensors") for file in files):
        raise InputError(f"{name} has no safetensors files.", hint="another --revision")
    return files


def _wants(path: str) -> bool:
    def any_of(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)

    return any_of(_WANTED) and not any_of(_NOT_WANTED)


def _mlcommons_files(address: str) -> list[RemoteFile]:
    if not urllib.parse.urlsplit(address).path.endswith(".uri"):
        raise InputError(f"{address} does not end in .uri.", hint="the link that MLCommons gives")
    headers = {
        header: os.environ[name]
        for header, name in (
            ("CF-Access-Client-Id", "CF_ACCESS_CLIENT_ID"),
            ("CF-Access-Client-Secret", "CF_ACCESS_CLIENT_SECRET"),
        )
        if name in os.environ
    }
    base = get_text(address, headers).strip()
    if not base.startswith(("http://", "https://")) or "\n" in base:
        raise InputError(
            f"{address} does not name a folder: it asks for a login.",
            hint="members only: export CF_ACCESS_CLIENT_ID and CF_ACCESS_CLIENT_SECRET of a "
            "service account, or fetch it with MLCommons' r2-downloader and name the folder",
        )
    if urllib.parse.urlsplit(base).netloc != urllib.parse.urlsplit(address).netloc:
        raise InputError(f"{address} names a folder on another host, {base}.")
    files = []
    for line in get_text(address.removesuffix(".uri") + ".md5", headers).splitlines():
        digest, _, path = line.partition(" ")
        name = path.strip().removeprefix("*").removeprefix("./")
        if len(digest) != 32 or not name or name.startswith("/") or ".." in name.split("/"):
            raise EnvironmentProblem(f"{address}: the list of files has the line {line!r}.")
        url = f"{base.rstrip('/')}/{urllib.parse.quote(name)}"
        files.append(
            RemoteFile(name=name, url=url, algorithm="md5", digest=digest.lower(), headers=headers)
        )
    return files


def _is_whole(path: Path, file: RemoteFile) -> bool:
    if not path.is_file() or (file.size is not None and path.stat().st_size != file.size):
        return False
    return file.digest is None or file_hash(path, file.algorithm) == file.digest


def _check_room(files: Sequence[RemoteFile], out: Path) -> None:
    def have(file: RemoteFile) -> int:
        paths = (out / file.name, (out / file.name).with_name(f"{Path(file.name).name}.part"))
        return max((path.stat().st_size for path in paths if path.exists()), default=0)

    needed = sum(max(0, (file.size or 0) - have(file)) for file in files)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise EnvironmentProblem(
            f"{out} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are to come.",
            hint="an OUT on another disk",
        )


def _what_to_carry(source: str) -> str:
    return (
        "without a network, on a machine that has one: "
        f"paceline model fetch {source} DIR   (--list shows the files and their sizes), then "
        f"carry DIR with all of its files (config.json, tokenizer files, every shard and its "
        f"index, {MANIFEST}), and here: paceline model fetch DIR OUT"
    )
