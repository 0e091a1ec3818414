"""What a reader of the verdict should know of the servers and of the client beside them."""

from __future__ import annotations

from typing import Any

from paceline.engines.endpoint_dialect import SERVERS

__all__ = ["notes_of"]

_BUSY = 0.8


def notes_of(facts: dict[str, Any]) -> list[str]:
    """A sentence for each; `facts` is what EndpointEngine.describe says."""
    notes = []
    if facts["simulated"]:
        notes.append("A server says that it is simulated: no model made these tokens.")
    elif facts["dtype"] == "unknown":
        notes.append(
            "The type of the weights is not known (engine.endpoint.dtype); `paceline submit` takes "
            "it as --weights-dtype."
        )
    if not facts["exact_token_ids"]:
        notes.append(
            "Token ids are not exact: a server gives text only, which was tokenised again."
        )
    if not facts["verify_tls"]:
        notes.append("The servers' certificates are not checked (engine.endpoint.verify_tls).")
    if facts["retries"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["retries"].items())
        notes.append(f"Requests sent again: {sum(facts['retries'].values())} ({kinds}).")
    for server in facts["servers"]:
        if SERVERS[server["kind"]].is_serial:
            notes.append(f"{server['url']} answers one request at a time.")
        if server["times_aside"]:
            state = "came back" if server["is_up"] else "did not come back"
            notes.append(
                f"{server['url']} was put aside {server['times_aside']} times, for "
                f"{server['aside_s']:.1f} s, and {state}."
            )
    notes += [f"{count} {name.replace('_', ' ')}." for name, count in facts["counts"].items()]
    notes += [
        f"Preflight: {check['server']}: {check['name']}: {check['detail']}."
        for check in facts["preflight"]
        if check["passed"] is False
    ]
    client = facts["client"]
    if client:
        word = "The client may be the limit" if client["busy_fraction"] > _BUSY else "Client"
        notes.append(
            f"{word}: busy {client['busy_fraction']:.1%} of one core; alone it could do "
            f"{client['ceiling_samples_per_second']:,.0f} samples/s."
        )
    return notes
