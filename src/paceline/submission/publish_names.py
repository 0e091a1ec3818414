"""Names of repositories in their addresses, and the text of a pull request."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from paceline.errors import InputError
from paceline.submission.check import CheckedTree

__all__ = ["full_name", "host_of", "pull_request_text"]


def host_of(url: str) -> str:
    """github.com of https://github.com/a/b and of git@github.com:a/b."""
    if match := re.fullmatch(r"(?:[\w.-]+@)?([\w.-]+):(?!//).+", url):
        return match[1]
    return urlsplit(url).hostname or ""


def full_name(url: str) -> str:
    """owner/name of a repository's address. Raises InputError."""
    if match := re.fullmatch(r"(?:[\w.-]+@)?[\w.-]+:(?!//)(.+)", url):
        path = match[1]
    else:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http", "ssh", "file"):
            raise InputError(
                f"--repo-url {url}: not the address of a repository.",
                hint="https://github.com/YOU/REPOSITORY",
            )
        path = parts.path
    return "/".join(path.strip("/").removesuffix(".git").split("/")[-2:])


def pull_request_text(checked: CheckedTree) -> str:
    """The pull request's text: the results, and what the check said."""
    lines = ["| system | benchmark | scenario | tokens/s | check |", "|---|---|---|---|---|"]
    for outcome in checked.outcomes:
        result, metric = outcome.result, outcome.facts.metric
        word = "FAIL" if checked.failures_of(result) else "PASS"
        speed = "-" if metric is None else f"{metric:,.1f}"
        cells = (result.system, result.benchmark, result.scenario, speed, word)
        lines.append(f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |")
    failed = sum(not finding.passed for finding in checked.findings)
    lines += ["", f"`paceline check`: {len(checked.findings)} checks, {failed} failed."]
    return "\n".join(lines)
