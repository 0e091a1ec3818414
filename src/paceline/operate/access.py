"""What the run reaches, and what publishing asks for: servers, ports, clock, logins, names."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from paceline.errors import InputError
from paceline.operate.finding import Finding, blocker, fine, unknown, warning
from paceline.operate.subject import Asked
from paceline.submission.publish_token import TOKEN_VARIABLES, find_token
from paceline.submission.system_host import Host
from paceline.submission.tree import check_name

__all__ = ["clock_finding", "login_findings", "server_findings", "submitter_finding"]

_WITHIN_S = 5.0
_GITHUB = "github.com"


def server_findings(
    asked: Asked | None, *, num_cards: int, environment: Mapping[str, str]
) -> list[Finding]:
    """The endpoint's servers, or ports for those that the run will start."""
    if asked is None:
        return []
    if asked.config.engine == "endpoint":
        return [*_key(asked, environment), *(_reach(url) for url in asked.settings.urls)]
    if asked.config.engine == "managed":
        group = asked.settings.tensor_parallel * asked.settings.pipeline_parallel
        return [_ports(asked.settings.servers or max(1, num_cards // group))]
    return []


def _key(asked: Asked, environment: Mapping[str, str]) -> list[Finding]:
    name, why = "api key", "servers that want a key refuse every request without it"
    variable = asked.settings.api_key_env
    if not variable:
        return []
    if not environment.get(variable, "").strip():
        return [blocker(name, f"{variable} is not set", why=why, mend=f"export {variable}=...")]
    return [fine(name, f"{variable} holds one (not shown)", why=why)]


def _reach(url: str) -> Finding:
    """Whether something listens where the recipe says."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    name, why = f"endpoint {host}:{port}", "the run sends every prompt there"
    try:
        with socket.create_connection((host, port), timeout=_WITHIN_S):
            pass
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return blocker(
            name,
            f"no connection: {reason}",
            why=why,
            mend=f"curl -sS {url}/v1/models   on this machine; start the server, or open the port",
        )
    return fine(name, "takes connections; `paceline preflight` asks it more", why=why)


def _ports(count: int) -> Finding:
    name, why = "ports", "each server that the run starts listens on a port of 127.0.0.1"
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                one = stack.enter_context(socket.socket())
                one.bind(("127.0.0.1", 0))
                one.listen()
            # A port can be bound where the loopback is down, and is reached by nobody.
            stack.enter_context(socket.create_connection(one.getsockname(), timeout=_WITHIN_S))
    except OSError as error:
        return blocker(
            name,
            f"{count} ports of 127.0.0.1 cannot be had: {error.strerror}",
            why=why,
            mend="ss -ltn   shows who listens; ip addr show lo   whether 127.0.0.1 is up",
        )
    return fine(name, f"{count} of 127.0.0.1 can be had", why=why)


def clock_finding(host: Host) -> Finding:
    """Whether this host's clock is kept by a time service; unknown where no tool tells."""
    name, why = (
        "clock",
        "logs of several nodes are laid beside each other, and tokens expire, by it",
    )
    mend = "sudo timedatectl set-ntp true   (or: sudo systemctl enable --now chronyd)"
    said = host.run("chronyc", "tracking")
    if status := re.search(r"^Leap status\s*:\s*(.+)$", said, re.MULTILINE):
        offset = re.search(r"^System time\s*:\s*([\d.]+) seconds", said, re.MULTILINE)
        off_s = float(offset[1]) if offset else None
        seen = f"chrony: {status[1].strip()}" + ("" if off_s is None else f", {off_s:.6f} s off")
        if "not synch" in status[1].lower() or (off_s or 0.0) > 1.0:
            return warning(name, seen, why=why, mend="chronyc sources   then sudo chronyc makestep")
        return fine(name, seen, why=why)
    said = host.run("timedatectl", "show", "-p", "NTPSynchronized", "--value").strip()
    if said in ("yes", "no"):
        if said == "no":
            return warning(name, "timedatectl: not synchronised", why=why, mend=mend)
        return fine(name, "timedatectl: synchronised", why=why)
    peers = host.run("ntpq", "-pn")
    if "remote" in peers:
        if re.search(r"^\*", peers, re.MULTILINE):
            return fine(name, "ntpq: a peer is followed", why=why)
        return warning(
            name, "ntpq: no peer is followed", why=why, mend="ntpq -pn; sudo systemctl restart ntpd"
        )
    return unknown(
        name,
        "chronyc, timedatectl and ntpq do not say",
        why=why,
        mend="date -u   on every node at once",
    )


def login_findings(host: Host, environment: Mapping[str, str]) -> list[Finding]:
    """What `paceline push` will need: git, an identity, a token. Warnings: a run needs none."""
    return [_git(host, environment), _token(environment)]


def _git(host: Host, environment: Mapping[str, str]) -> Finding:
    name, why = "git identity", "`paceline push` commits the submission in this name"
    if not host.run("git", "--version"):
        return warning(
            name,
            "git is not installed",
            why=why,
            mend="sudo apt install git   (or: module load git)",
        )
    lost = [
        key
        for key, variable in (("name", "GIT_AUTHOR_NAME"), ("email", "GIT_AUTHOR_EMAIL"))
        if not (environment.get(variable) or host.run("git", "config", f"user.{key}").strip())
    ]
    if lost:
        return warning(
            name,
            f"not set: {', '.join(f'user.{key}' for key in lost)}",
            why=why,
            mend="   ".join(f'git config --global user.{key} "YOUR {key.upper()}"' for key in lost),
        )
    return fine(name, "name and email are set", why=why)


def _token(environment: Mapping[str, str]) -> Finding:
    name, why = "github login", "`paceline push` opens the pull request with it"
    mend = "gh auth login   (or export GITHUB_TOKEN=...); on the day before, not at the deadline"
    try:
        token = find_token(_GITHUB, environment)
    except InputError as error:
        return warning(
            name, error.message, why=why, mend="export GITHUB_TOKEN=...   without blanks"
        )
    if token is None:
        program = shutil.which("gh", path=environment.get("PATH", os.defpath))
        gh = "gh is not installed" if program is None else "gh is not logged in"
        return warning(
            name, f"none: {', '.join(TOKEN_VARIABLES)} are empty and {gh}", why=why, mend=mend
        )
    source = next((v for v in TOKEN_VARIABLES if environment.get(v, "").strip()), "gh")
    return fine(name, f"there is one, from {source} (not shown, not tried)", why=why)


def submitter_finding(submitter: str) -> Finding:
    """Whether the submitter's name can be a folder's."""
    name, why = "submitter", "it names a folder of the submission; the checker refuses odd ones"
    try:
        check_name(submitter, "The submitter")
    except InputError as error:
        return blocker(name, error.message, why=why, mend=f"--submitter with {error.hint}")
    return fine(name, submitter, why=why)
