"""The token for GitHub: where it comes from, where it may go, and that it is seen nowhere.

It is read from the environment (GITHUB_TOKEN, GH_TOKEN, or MLC_GITHUB_PAT, which the MLC tool
uses), else asked of `gh auth token`. It reaches git in an environment variable and the API in a
header; never an argument, a file, a message or a log.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Mapping
from urllib.parse import urlsplit

from paceline.errors import InputError

__all__ = ["TOKEN_VARIABLES", "find_token", "git_header", "redacted", "require_safe"]

TOKEN_VARIABLES = ("GITHUB_TOKEN", "GH_TOKEN", "MLC_GITHUB_PAT")
_GH_WITHIN_S = 15
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_token(host: str, environment: Mapping[str, str]) -> str | None:
    """A token for `host`, or None. Raises InputError for one that cannot be sent in a header."""
    for name in TOKEN_VARIABLES:
        if token := environment.get(name, "").strip():
            if not token.isascii() or not token.isprintable() or " " in token:
                raise InputError(f"{name} holds no token: it has blanks or odd characters.")
            return token
    program = shutil.which("gh", path=environment.get("PATH", os.defpath))
    if program is None:
        return None
    try:
        asked = subprocess.run(
            [program, "auth", "token", "--hostname", host],
            capture_output=True,
            text=True,
            check=False,
            timeout=_GH_WITHIN_S,
            env=dict(environment),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def require_safe(url: str, token: str | None) -> None:
    """Refuse an address that would show the token. Raises InputError."""
    parts = urlsplit(url)
    if parts.password is not None or (parts.scheme.startswith("http") and parts.username):
        raise InputError(
            "The repository's address has a user or a password in it, which ends in logs.",
            hint="give it without, and the token in GITHUB_TOKEN",
        )
    if token is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise InputError(
            f"{parts.hostname} is addressed by http: the token would travel unencrypted.",
            hint="https://...",
        )


def git_header(token: str) -> str:
    """The header that git sends, as GitHub wants it."""
    return f"Authorization: Basic {_basic(token)}"


def redacted(text: str, token: str | None) -> str:
    """Text without the token, in either of its forms."""
    if token is None:
        return text
    return text.replace(token, "***").replace(_basic(token), "***")


def _basic(token: str) -> str:
    return base64.b64encode(f"x-access-token:{token}".encode()).decode()
