"""How a run of replicas is at a moment, summed up from what each of them said last."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.engines import EngineState, Part
from paceline.engines.replicas_dispatch import Pool
from paceline.engines.replicas_seat import Seat

__all__ = ["state_of"]


def state_of(seats: Sequence[Seat], pool: Pool) -> EngineState:
    """The replicas as one engine; any thread may ask.

    Live are those that an engine said to be, or that it holds where it does not say; every other
    sample without an answer waits, wherever it is, in queues of servers too. Caches are one, each
    weighed by what it holds. What lost processes preempted is counted too.
    """
    parts, told = [], []
    for seat in seats:
        # Lists are replaced, never changed, by the thread that owns them.
        members, states = seat.members, seat.states
        for place, name in enumerate(seat.names):
            is_up = place < min(len(members), len(states))
            live = answered = 0
            if is_up:
                said = states[place].live_sequences
                live = len(members[place].held) if said is None else said
                answered = members[place].answered
                told.append(states[place])
            parts.append(
                Part(
                    name=f"{name} on {seat.node.host}",
                    live_sequences=live,
                    tokens=seat.num_made(place),
                    answered=seat.answered[place] + answered,
                    is_up=is_up,
                )
            )
    live = sum(part.live_sequences for part in parts)
    caches = [
        (state.kv_used_fraction, state.kv_slots)
        for state in told
        if state.kv_used_fraction is not None and state.kv_slots is not None
    ]
    slots = sum(size for _, size in caches)
    used = round(sum(part * size for part, size in caches) / slots, 4) if slots else None
    queued = [state.queued_at_servers for state in told if state.queued_at_servers is not None]
    preempted = [state.preemptions for state in told if state.preemptions is not None]
    before = sum(seat.preemptions_before for seat in seats)
    return EngineState(
        live_sequences=live,
        waiting_sequences=max(0, len(pool) - live),
        queued_at_servers=sum(queued) if queued else None,
        kv_used_fraction=used,
        kv_slots=slots or None,
        preemptions=before + sum(preempted) if preempted or before else None,
        parts=tuple(parts),
    )
