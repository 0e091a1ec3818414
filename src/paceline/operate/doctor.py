"""`paceline doctor`: everything that can be known before anything long starts.

    examine(request, host)     every finding, what was not looked at, and a plan

Nothing here needs a GPU, an administrator or a recipe, and nothing is changed but for one
temporary file, which is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import CheckpointError
from paceline.operate import access, cards, disk, limits, plan, software, stored
from paceline.operate.finding import Diagnosis, Finding
from paceline.operate.subject import Asked
from paceline.submission import system_nvml, system_probe
from paceline.submission.system_host import Host

__all__ = ["Request", "examine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to look at: the machine alone when `asked` is None. `out` is where runs are written."""

    asked: Asked | None
    out: Path
    submitter: str | None
    environment: Mapping[str, str]


def examine(request: Request, host: Host) -> Diagnosis:
    """Look at everything."""
    asked, environment = request.asked, request.environment
    found = system_nvml.health()
    others = [] if found else system_probe.find_gpus(host)[0]
    shown = cards.visible(found, environment)
    memory = [(card.name, card.memory_bytes) for card in shown if card.memory_bytes]
    memory += [(gpu.name, gpu.memory_bytes) for gpu in others if gpu.memory_bytes]
    num_cards = len(shown) + len(others)
    on_cards = cards.wants_cards(asked, num_cards)
    used = memory if on_cards or asked is None else []
    size = stored.model_bytes(asked) if asked else None
    findings = [
        *software.software_findings(asked, shown, on_cards=on_cards),
        *cards.card_findings(found, others, asked=asked, host=host, environment=environment),
        *limits.limit_findings(host, asked=asked, cards=used, model_bytes=size),
        *disk.disk_findings(request.out, asked=asked, environment=environment),
        access.clock_finding(host),
        *access.server_findings(asked, num_cards=num_cards, environment=environment),
        *access.login_findings(host, environment),
    ]
    skipped: list[tuple[str, str]] = []
    if asked is None:
        skipped += [
            (name, "no recipe was given: paceline doctor RECIPE")
            for name in ("packages", "checkpoint", "dataset", "tokenizer", "servers", "model fits")
        ]
    else:
        more, unread = stored.file_findings(asked)
        findings += more
        skipped += unread
    if request.submitter is None:
        skipped.append(("submitter", "no name was given: --submitter NAME"))
    else:
        findings.append(access.submitter_finding(request.submitter))
    skipped.append(("other nodes", "each node is asked by itself: run this on every one"))
    laid_out, fits, unfit = _layout(asked, memory)
    return Diagnosis(findings=(*findings, *fits), not_checked=(*skipped, *unfit), plan=laid_out)


def _layout(
    asked: Asked | None, memory: list[tuple[str, int]]
) -> tuple[dict[str, object] | None, list[Finding], list[tuple[str, str]]]:
    """The plan, what the cards hold of the model, and why either is not there."""
    try:
        where = plan.placed(asked, memory)
    except CheckpointError:
        where = "the checkpoint's config.json cannot be read"
    if isinstance(where, str):
        return None, [], [("plan", where)]
    fits = plan.fit_findings(asked, where) if asked else []
    laid_out = plan.make_plan(where, recipe=asked.recipe if asked else "")
    skipped = [] if laid_out else [("plan", "the model does not fit on eight of these cards")]
    return laid_out, fits, skipped
