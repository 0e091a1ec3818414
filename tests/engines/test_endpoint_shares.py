"""Who gets how much: servers of unequal speed while requests keep coming."""

from __future__ import annotations

from collections.abc import Callable

from fault_server import Call, FaultServer, Reply, context, requests, right, settings
from paceline.engines.endpoint import EndpointEngine
from paceline.engines.probe import Probe


def paced(delay_s: float) -> Callable[[Call], Reply]:
    def answer(call: Call) -> Reply:
        reply = right(call)
        reply.delay_s = delay_s
        return reply

    return answer


def test_a_slow_server_works_while_answers_bring_new_requests() -> None:
    """A probe's closed loop leaves hardly a request waiting, which is no end of the pile."""
    with FaultServer(paced(0.2)) as fast, FaultServer(paced(0.6)) as slow:
        engine = EndpointEngine(settings(fast, slow, concurrency=4), context())
        engine.start()
        try:
            probe = Probe(engine, requests(50), slice_s=0.5)
            found = probe.hold(in_flight=8, seconds=6.0, tokens_per_sample=20.0)
            answered = {one["url"]: one["answered"] for one in engine.describe()["servers"]}
        finally:
            engine.close()
    # 4 / 0.2 s and 4 / 0.6 s; the fast one alone makes three quarters of that.
    share = answered[slow.url] / sum(answered.values())
    assert share > 0.2, answered
    assert found.answered > 0
