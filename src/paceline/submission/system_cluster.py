"""The description of a whole cluster: every node of a Ray cluster is asked, and all are merged.

Where nodes differ, the field becomes unknown and the difference is named, as with files that were
merged by hand.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from paceline.engines.replicas_cluster import Cluster
from paceline.submission.system import Description, describe, from_json, merge
from paceline.submission.system_host import this_host

__all__ = ["describe_cluster"]


def describe_cluster(address: str, *, network: bool = False) -> Description:
    """Every node of the cluster at `address` ("auto": the one of this host) as one system.

    Raises EngineError when there is no cluster or a node does not answer.
    """
    cluster = Cluster(address, environment={})
    try:
        found = cluster.on_every_node(_describe_here, network)
    finally:
        cluster.close()
    names = Counter(node.host for node, _ in found)
    descriptions = []
    for node, facts in found:
        description = from_json(facts, origin=node.label)
        # Machines made from one image have one name; their addresses tell them apart.
        if names[node.host] > 1:
            description = dataclasses.replace(description, hosts=(node.label,))
        descriptions.append(description)
    return merge(descriptions)


def _describe_here(network: bool) -> dict[str, Any]:
    return describe(this_host(), network=network).as_json()
