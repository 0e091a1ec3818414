"""Requests that nobody wants any more: out of the scheduler, wherever they are in it.

Call it between two steps, from the thread that steps. A sequence may be in a step that is
planned or under way: its pages are freed as they are when it ends by itself, which is noticed a
step late too, and the id that comes of it is dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Set as AbstractSet

from paceline.native.schedule import Scheduler

__all__ = ["cancel"]


def cancel(scheduler: Scheduler, request_ids: AbstractSet[int]) -> set[int]:
    """Forget these requests; returns those that were there."""
    begun = [*scheduler.running, *scheduler._preempted]
    gone = [sequence for sequence in begun if sequence.request_id in request_ids]
    for sequence in gone:
        scheduler._finish(sequence)
    waiting = [item[2] for item in scheduler._waiting if item[2].request_id in request_ids]
    if waiting:
        kept = [item for item in scheduler._waiting if item[2].request_id not in request_ids]
        heapq.heapify(kept)
        scheduler._waiting = kept
    gone += waiting
    return {sequence.request_id for sequence in gone}
