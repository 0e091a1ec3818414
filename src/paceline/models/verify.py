"""A checkpoint against its config, against a manifest of hashes, and against itself.

    readable    every file that the index names is there, whole, and lies as its header says
    names       the tensors are those that config.json asks for, no more, no fewer
    shapes      and have its shapes
    dtypes      and its types
    finite      no value is NaN or infinite
    hashes      every file has the hash that the manifest gives it

A manifest is a text of "HASH  NAME" lines (`sha256sum` or `md5sum` made it, or `--write-manifest`)
or a run's manifest.json, which holds what the run read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import CheckpointError, InputError
from paceline.models.layout import Expected, expected_tensors, read_model
from paceline.models.shards import StoredTensor, bad_values, read_header
from paceline.rundir import write_atomically

__all__ = [
    "MANIFEST",
    "ModelFinding",
    "file_hash",
    "read_manifest",
    "verify",
    "verify_headers",
    "write_manifest",
]

MANIFEST = "SHA256SUMS"
_NONE_READ = "no tensor could be read"
_SHOWN = 5
_ALGORITHMS = {32: "md5", 64: "sha256"}

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class ModelFinding:
    """One checked rule."""

    rule: str
    passed: bool
    detail: str


def verify(folder: Path, *, manifest: Path | None, progress: Progress) -> list[ModelFinding]:
    """Check a Hugging Face folder. `manifest` None takes SHA256SUMS in it, if there is one.

    Raises
        CheckpointError  there is no config.json that can be read, or no weights at all.
        InputError       the manifest cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder.", hint="name a Hugging Face folder, with config.json"
        )
    listed = manifest or (folder / MANIFEST if (folder / MANIFEST).is_file() else None)
    hashes = read_manifest(listed) if listed is not None else None
    tensors, findings = _examined(folder)
    findings.append(_finite(tensors, progress))
    if hashes is not None:
        findings.append(_hashes(folder, hashes, progress))
    return findings


def verify_headers(folder: Path) -> list[ModelFinding]:
    """What `verify` checks without reading a weight: seconds for any size.

    Raises
        CheckpointError  there is no config.json that can be read, or no weights at all.
    """
    return _examined(folder)[1]


def read_manifest(path: Path) -> dict[str, str]:
    """Hashes by file name.

    Raises
        InputError  the file is missing, or is neither of the two kinds.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the manifest {path}: {error}.") from error
    if text.lstrip().startswith("{"):
        try:
            return {str(k): str(v) for k, v in json.loads(text)["model"]["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not a run's manifest: {type(error).__name__}: {error}.",
                hint="give a run's manifest.json, or lines of `sha256sum`",
            ) from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        digest, _, name = line.partition(" ")
        if not line.strip():
            continue
        if len(digest) not in _ALGORITHMS or not name.strip():
            raise InputError(
                f"{path}: line {number} is no hash and name.", hint="as `sha256sum *` prints them"
            )
        found[name.strip().removeprefix("*").removeprefix("./")] = digest.lower()
    return found


def write_manifest(folder: Path, progress: Progress) -> Path:
    """Hash every file of a folder into SHA256SUMS, whose path is returned."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    lines = []
    for done, path in enumerate(files):
        progress(done, len(files), f"hashing {path.name}")
        lines.append(f"{file_hash(path, 'sha256')}  {path.name}\n")
    write_atomically(folder / MANIFEST, "".join(lines))
    return folder / MANIFEST


def file_hash(path: Path, algorithm: str) -> str:
    """Hex digest of a file. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error


def _examined(folder: Path) -> tuple[dict[str, tuple[Path, StoredTensor]], list[ModelFinding]]:
    expected = expected_tensors(read_model(folder))
    tensors, findings = _headers(folder)
    return tensors, findings + _compared(tensors, expected)


def _headers(folder: Path) -> tuple[dict[str, tuple[Path, StoredTensor]], list[ModelFinding]]:
    """Every tensor that can be read, and what is wrong with files."""
    files, problems = _files(folder)
    tensors: dict[str, tuple[Path, StoredTensor]] = {}
    for path in files:
        try:
            for tensor in read_header(path):
                if tensor.name in tensors:
                    problems.append(f"{tensor.name} is in two files")
                tensors[tensor.name] = (path, tensor)
        except CheckpointError as error:
            problems.append(error.message)
    detail = f"{len(files)} files, {len(tensors)} tensors"
    return tensors, [_finding("readable", problems, detail)]


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise CheckpointError(f"{folder} holds no .safetensors file.", hint="fetch it again")
        return found, []
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: {error}.", hint="fetch it again") from error
    missing = [f"{name} is missing" for name in names if not (folder / name).is_file()]
    return [folder / name for name in names if (folder / name).is_file()], missing


def _compared(
    tensors: Mapping[str, tuple[Path, StoredTensor]], expected: Mapping[str, Expected]
) -> list[ModelFinding]:
    lost = [f"{name} is missing" for name in expected if name not in tensors]
    extra = [
        f"{name} is not asked for"
        for name in tensors
        # Older checkpoints carry the frequencies, which are computed.
        if name not in expected and not name.endswith("rotary_emb.inv_freq")
    ]
    shapes, dtypes = [], []
    for name, wanted in expected.items():
        if name not in tensors:
            continue
        tensor = tensors[name][1]
        if tensor.shape not in wanted.shapes:
            shapes.append(f"{name} is {list(tensor.shape)}, not {list(wanted.shapes[-1])}")
        if tensor.dtype not in wanted.dtypes:
            dtypes.append(f"{name} is {tensor.dtype}, not {' or '.join(wanted.dtypes)}")
    if not tensors:
        shapes, dtypes = [_NONE_READ], [_NONE_READ]
    of_read = f"{len(expected) - len(lost)} as config.json asks"
    return [
        _finding("names", lost + extra, f"{len(expected)} as config.json asks"),
        _finding("shapes", shapes, of_read),
        _finding("dtypes", dtypes, of_read),
    ]


def _finite(tensors: Mapping[str, tuple[Path, StoredTensor]], progress: Progress) -> ModelFinding:
    bad = []
    for done, (name, (path, tensor)) in enumerate(tensors.items()):
        progress(done, len(tensors), f"reading {path.name}")
        if count := bad_values(path, tensor):
            bad.append(f"{name} has {count} values that are NaN or infinite")
    if not tensors:
        bad = [_NONE_READ]
    return _finding("finite", bad, f"no NaN, no infinity in {len(tensors)} tensors")


def _hashes(folder: Path, hashes: Mapping[str, str], progress: Progress) -> ModelFinding:
    bad = []
    for done, (name, wanted) in enumerate(sorted(hashes.items())):
        progress(done, len(hashes), f"hashing {name}")
        if not (folder / name).is_file():
            bad.append(f"{name} is missing")
        elif file_hash(folder / name, _ALGORITHMS.get(len(wanted), "sha256")) != wanted:
            bad.append(f"{name} has another hash")
    unlisted = [
        f"{path.name} is not in the manifest"
        for path in sorted(folder.glob("*.safetensors"))
        if path.name not in hashes
    ]
    return _finding("hashes", bad + unlisted, f"{len(hashes)} files as the manifest says")


def _finding(rule: str, problems: list[str], well: str) -> ModelFinding:
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return ModelFinding(rule, not problems, shown + more if problems else well)
