"""The name of a system under test that is reached over a network.

The rules of the network division want LoadGen to see a query dispatch library whose name has
"Network SUT" in it, and the name to come from the nodes: at least one round trip to each, the
names that are different listed once.
"""

from __future__ import annotations

from paceline.engines import NetworkEngine
from paceline.errors import EngineError

__all__ = ["NETWORK_SUT", "network_name"]

NETWORK_SUT = "Network SUT"


def network_name(engine: object) -> str:
    """Ask every node for its name. Raises EngineError when one does not answer."""
    if not isinstance(engine, NetworkEngine):
        raise EngineError(
            "The engine reaches no other host, so the run cannot be of the network division.",
            hint="leave run.network out",
        )
    names = list(dict.fromkeys(engine.server_names()))
    if not names:
        raise EngineError("The engine has no node that could give a name.")
    return f"{NETWORK_SUT}: {', '.join(names)}"
