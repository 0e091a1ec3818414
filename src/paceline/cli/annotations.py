"""Findings as GitHub shows them on a pull request's files: one workflow command a finding.

A finding names a file; the line is the one it speaks of, where its words tell: "Line 7 holds ...",
or the first line of the file with a key that the finding names. Where nothing tells, it is the
first line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from paceline.submission.check import TreeFinding

__all__ = ["annotation", "annotation_lines"]

_LEVELS = {"FAIL": "error", "WARN": "warning", "NOTE": "notice"}
_FILE_BYTES_MAX = 1 << 22
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{2,}(?:\.[A-Za-z0-9_-]+)*")


def annotation_lines(tree: Path, findings: Iterable[TreeFinding]) -> list[str]:
    """Commands for the findings that are not a plain PASS, the failing ones first."""
    telling = [finding for finding in findings if finding.verdict in _LEVELS]
    telling.sort(key=lambda finding: list(_LEVELS).index(finding.verdict))
    return [annotation(tree, finding) for finding in telling]


def annotation(tree: Path, finding: TreeFinding) -> str:
    """One finding's command."""
    path = tree / finding.path
    words = [f"file={_property(path.as_posix().removeprefix('./'))}"] if finding.path else []
    if finding.path:
        words.append(f"line={_line(path, finding.detail)}")
    words.append(f"title={_property(finding.rule)}")
    text = finding.detail + (f"\n-> {finding.mend}" if finding.mend else "")
    return f"::{_LEVELS[finding.verdict]} {','.join(words)}::{_data(text)}"


def _line(path: Path, detail: str) -> int:
    if match := re.search(r"\b[Ll]ine (\d+)\b", detail):
        return int(match[1])
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > _FILE_BYTES_MAX:
            return 1
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 1
    for word in _WORD.findall(detail):
        for place, text in enumerate(lines, 1):
            if f'"{word}"' in text or f"'{word}'" in text or text.lstrip().startswith(word):
                return place
    return 1


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
