"""The checks of every name and file in a tree, whatever it is for.

A submission ends in a public git repository: names that git or a shell trips over, links, files
that are too large, left-overs, and above all secrets must not be in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from paceline.mlperf.tree_rules import FILE_BYTES_MAX
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Entry, Inventory, Unreadable

__all__ = ["check_names", "check_secrets"]

# Each pattern is only tried on a file that holds its literal, which is found many times faster.
_SECRETS = (
    ("a Hugging Face token", b"hf_", re.compile(rb"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{30,}")),
    ("a GitHub token", b"ghp_", re.compile(rb"(?<![A-Za-z0-9_])ghp_[A-Za-z0-9]{36}")),
    ("a GitHub token", b"github_pat_", re.compile(rb"github_pat_[A-Za-z0-9_]{50,}")),
    ("a GitHub token", b"gho_", re.compile(rb"(?<![A-Za-z0-9_])gho_[A-Za-z0-9]{36}")),
    ("an AWS access key", b"AKIA", re.compile(rb"(?<![A-Z0-9])AKIA[A-Z0-9]{16}(?![A-Z0-9])")),
    ("an AWS access key", b"ASIA", re.compile(rb"(?<![A-Z0-9])ASIA[A-Z0-9]{16}(?![A-Z0-9])")),
    ("a private key", b"PRIVATE KEY", re.compile(rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----")),
    (
        "a Cloudflare Access secret",
        b"CF-Access-Client-Secret",
        re.compile(rb"CF-Access-Client-Secret[\"']?\s{0,8}[:=]\s{0,8}[\"']?[0-9a-fA-F]{32,}"),
    ),
    (
        "a Cloudflare Access secret",
        b"client_secret",
        re.compile(rb"client_secret[\"']?\s{0,8}[:=]\s{0,8}[\"']?[0-9a-fA-F]{40,}"),
    ),
    ("an API key", b"sk-", re.compile(rb"(?<![A-Za-z0-9_-])sk-(?:proj-|ant-)?[A-Za-z0-9_-]{40,}")),
    ("a Slack token", b"xox", re.compile(rb"xox[abprs]-[A-Za-z0-9-]{20,}")),
    ("an NGC key", b"nvapi-", re.compile(rb"nvapi-[A-Za-z0-9_-]{40,}")),
    (
        "a password in an address",
        b"://",
        re.compile(rb"https?://[^\s/:@\"'<>$]{1,64}:[^\s/:@\"'<>${}]{8,128}@"),
    ),
)


def check_names(inventory: Inventory, paths: Iterable[str], *, ledger: Ledger) -> None:
    """Names, kinds and sizes of the entries at `paths`."""
    for path in paths:
        entry, name = inventory.entries[path], path.rpartition("/")[2]
        _name(path, name, entry, ledger)
        if entry.kind == "link":
            ledger.expect(
                False, "no-links", path, f"This is a symbolic link, to {shown(entry.target)}."
            )
        elif entry.kind == "special":
            ledger.expect(False, "ordinary-files", path, "This is a pipe, socket or device.")
        elif entry.kind == "dir":
            _directory(inventory, path, name, ledger)
        elif entry.size > FILE_BYTES_MAX.value:
            detail = f"This file has {entry.size:,} bytes; the limit is {FILE_BYTES_MAX.value:,}."
            ledger.expect(False, "file-size", path, detail)
    for path, why in inventory.unread.items():
        ledger.expect(False, "ordinary-files", path, f"This directory {why}.")


def _name(path: str, name: str, entry: Entry, ledger: Ledger) -> None:
    if name.startswith("."):
        # A .gitignore deep in someone's source is no danger; the old checker refuses it still.
        ledger.expect(False, "no-dot-names", path, "The name begins with a dot.")
    if any(character.isspace() for character in name):
        ledger.expect(False, "no-spaces", path, "The name has a space in it.")
    if not name.isprintable() or "\\" in name or not _is_unicode(name):
        ledger.expect(
            False, "printable-names", path, "The name has control characters or is not UTF-8."
        )
    if entry.kind == "file" and name.endswith((".pyc", ".pyo")):
        ledger.expect(False, "no-pycache", path, "This is a compiled Python file.")


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _directory(inventory: Inventory, path: str, name: str, ledger: Ledger) -> None:
    if name == "__pycache__":
        ledger.expect(False, "no-pycache", path, "This directory is Python's cache.")
    if not inventory.children.get(path) and path not in inventory.unread:
        ledger.expect(False, "no-empty-dirs", path, "This directory is empty; git drops it.")


def check_secrets(inventory: Inventory, paths: Iterable[str], *, ledger: Ledger) -> None:
    """Look for keys and tokens in the files at `paths`. The secret itself is never shown."""
    for path in paths:
        if path.endswith("/mlperf_log_accuracy.json"):
            continue  # hexadecimal digits, whose form is checked, and nine tenths of some trees
        try:
            data = inventory.read(path, bytes_max=FILE_BYTES_MAX.value)
        except Unreadable:
            continue
        data = _without_numbers(path, data)
        for what, literal, pattern in _SECRETS:
            if literal in data and (match := pattern.search(data)):
                line = data.count(b"\n", 0, match.start()) + 1
                start = match[0][:6].decode("ascii", "replace")
                detail = f"Line {line} holds {what} ({shown(start)}...)."
                ledger.expect(False, "no-secrets", path, detail)


def _without_numbers(path: str, data: bytes) -> bytes:
    """A detail log without its one long record, the indices of 24,576 samples."""
    start = data.find(b'"loaded_qsl_set"') if path.endswith("/mlperf_log_detail.txt") else -1
    if start < 0:
        return data
    end = data.find(b"\n", start)
    return data[:start] + (data[end:] if end >= 0 else b"")
