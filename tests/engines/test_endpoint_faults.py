"""What goes wrong with servers, over real HTTP: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fault_server import (
    EOS,
    LIMIT,
    Call,
    Collector,
    FaultServer,
    Reply,
    completion,
    context,
    requests,
    right,
    run,
    settings,
    wait_for,
)
from paceline.engines.endpoint import EndpointEngine
from paceline.errors import EngineError, InputError


def test_requests_are_kept_within_the_limit_on_connections_that_stay_open() -> None:
    asked = requests(80)

    def slowly(call: Call) -> Reply:
        reply = right(call)
        reply.delay_s = 0.005
        return reply

    with FaultServer(slowly) as server:
        result = run(settings(server, concurrency=5), asked)
    result.require_all(asked)
    assert server.most_open == 5
    assert server.connections <= 6
    assert result.facts["retries"] == {}
    assert result.facts["servers"][0]["answered"] == 80
    assert result.facts["client"]["ceiling_samples_per_second"] > 80


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_passing_http_error_is_retried_and_counted(status: int) -> None:
    asked = requests(40)

    def sometimes(call: Call) -> Reply:
        fails = not call.is_preflight and call.place % 5 == 2
        return Reply({"error": "busy"}, status=status) if fails else right(call)

    with FaultServer(sometimes) as server:
        result = run(settings(server, retries=20), asked)
    result.require_all(asked)
    failed = len(server.asked) - len(asked)
    assert failed >= 8
    assert result.facts["retries"] == {f"http_{status}": failed}
    assert result.facts["servers"][0]["faults"] == {f"http_{status}": failed}
    assert any("sent again" in note for note in result.facts["notes"])


def test_retry_after_is_honoured_for_the_whole_server() -> None:
    asked = requests(6)

    def once(call: Call) -> Reply:
        if call.place == 0 and not call.is_preflight:
            return Reply({}, status=429, headers={"Retry-After": "1"})
        return right(call)

    with FaultServer(once) as server:
        result = run(settings(server, concurrency=1), asked)
    result.require_all(asked)
    first, second = server.times[-len(server.asked) :][:2]
    assert second - first >= 1.0


def test_a_server_that_takes_fewer_than_we_send_gets_fewer() -> None:
    asked = requests(120)
    server = FaultServer()

    def three(call: Call) -> Reply:
        if server.open > 3 and not call.is_preflight:
            return Reply({}, status=429)
        reply = right(call)
        reply.delay_s = 0.005
        return reply

    server.behave = three
    with server:
        result = run(settings(server, concurrency=32, retries=30), asked)
    result.require_all(asked)
    assert result.facts["servers"][0]["concurrency"] < 10


def test_half_a_json_is_retried() -> None:
    asked = requests(20)

    def torn(call: Call) -> Reply:
        reply = right(call)
        return (
            Reply(b'{"model": "m", "choi') if call.place == 3 and not call.is_preflight else reply
        )

    with FaultServer(torn) as server:
        result = run(settings(server), asked)
    result.require_all(asked)
    assert result.facts["retries"] == {"bad_json": 1}


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_reset_in_the_middle_of_an_answer_is_retried(stream: str) -> None:
    asked = requests(20)

    def cut(call: Call) -> Reply:
        reply = right(call)
        if call.place in (2, 9) and not call.is_preflight:
            reply.cut = 2 if stream == "true" else 60
        return reply

    with FaultServer(cut) as server:
        result = run(settings(server, stream=stream), asked)
    result.require_all(asked)
    assert result.facts["retries"] == {"reset": 2}
    for request in asked:
        answer = result.sink.completions[request.request_id]
        assert result.sink.first[request.request_id][0] == answer.token_ids[0]


def test_a_stream_that_ends_without_an_end_is_retried() -> None:
    asked = requests(10)

    def short(call: Call) -> Reply:
        reply = right(call)
        if call.place == 4 and not call.is_preflight:
            assert reply.events is not None
            reply.events = reply.events[:2]
        return reply

    with FaultServer(short) as server:
        result = run(settings(server, stream="true"), asked)
    result.require_all(asked)
    assert result.facts["retries"] == {"truncated": 1}


def test_a_server_that_dies_half_way_and_comes_back_loses_nothing() -> None:
    asked = requests(200)

    def slowly(call: Call) -> Reply:
        reply = right(call)
        reply.delay_s = 0.01
        return reply

    with FaultServer(slowly) as server:

        def restart(sink: Collector) -> None:
            wait_for(sink, 100)
            server.stop()
            time.sleep(0.5)
            server.start()

        result = run(settings(server), asked, during=restart)
    result.require_all(asked)
    facts = result.facts["servers"][0]
    assert facts["times_aside"] >= 1
    assert facts["is_up"]
    assert facts["aside_s"] >= 0.3
    assert set(facts["faults"]) <= {"reset", "refused"}
    assert any("came back" in note for note in result.facts["notes"])


def test_one_of_four_servers_that_never_comes_back_leaves_its_work_to_the_others() -> None:
    asked = requests(300)

    def slowly(call: Call) -> Reply:
        reply = right(call)
        reply.delay_s = 0.01
        return reply

    servers = [FaultServer(slowly) for _ in range(4)]
    for server in servers:
        server.start()
    try:

        def kill(sink: Collector) -> None:
            wait_for(sink, 100)
            servers[2].stop()

        result = run(settings(*servers), asked, during=kill)
    finally:
        for server in servers:
            server.stop()
    result.require_all(asked)
    states = result.facts["servers"]
    assert [state["is_up"] for state in states] == [True, True, False, True]
    assert sum(state["answered"] for state in states) == 300
    assert any("did not come back" in note for note in result.facts["notes"])


def test_a_server_ten_times_slower_gets_a_tenth_and_ends_with_the_others() -> None:
    asked = requests(130)

    def paced(delay_s: float) -> Callable[[Call], Reply]:
        def behave(call: Call) -> Reply:
            reply = right(call)
            reply.delay_s = 0.0 if call.is_preflight else delay_s
            return reply

        return behave

    fast, slow = FaultServer(paced(0.1)), FaultServer(paced(1.0))
    with fast, slow:
        result = run(settings(fast, slow, concurrency=8), asked)
    result.require_all(asked)
    # After a second the slow one has answered 8 and the fast one 80. The fast one needs half a
    # second for the rest; the slow one would need a whole one for a second share of 8.
    answered = [state["answered"] for state in result.facts["servers"]]
    assert 1 <= answered[1] <= 11
    assert sum(answered) == 130


def test_a_request_that_fails_for_good_is_named_and_the_rest_is_answered() -> None:
    asked = requests(30)
    poison = asked[7].token_ids.tolist()

    def refuses_one(call: Call) -> Reply:
        return Reply({"error": "no"}, status=500) if call.prompt == poison else right(call)

    with FaultServer(refuses_one) as server:
        result = run(settings(server, retries=2), asked)
    assert set(result.sink.failures) == {7}
    assert "HTTP 500" in result.sink.failures[7].message
    assert "after 3 tries" in result.sink.failures[7].message
    assert len(result.sink.completions) == 29
    assert sum(call.prompt == poison for call in server.calls) == 3


def test_a_bad_request_is_not_sent_again() -> None:
    asked = requests(10)

    def picky(call: Call) -> Reply:
        bad = call.place == 4 and not call.is_preflight
        return Reply({"error": "too long"}, status=400) if bad else right(call)

    with FaultServer(picky) as server:
        result = run(settings(server), asked)
    assert len(result.sink.failures) == 1
    assert len(server.asked) == 10
    assert "too long" in next(iter(result.sink.failures.values())).message


def test_requests_fail_when_no_server_comes_back() -> None:
    asked = requests(50)

    def slowly(call: Call) -> Reply:
        reply = right(call)
        reply.delay_s = 0.02
        return reply

    with FaultServer(slowly) as server:

        def kill(sink: Collector) -> None:
            wait_for(sink, 10)
            server.stop()

        result = run(settings(server, dead_timeout_s=0.4), asked, during=kill)
    assert len(result.sink.failures) + len(result.sink.completions) == 50
    error = next(iter(result.sink.failures.values()))
    assert "No server answered for 0.4 s" in error.message
    assert "--resume" in str(error.hint)


def test_requests_that_come_when_no_server_is_left_fail_at_once() -> None:
    first, later = requests(60)[:50], requests(60)[50:]

    with FaultServer(right) as server:
        engine, sink = EndpointEngine(settings(server, dead_timeout_s=0.2), context()), Collector()
        try:
            engine.start()
            server.stop()
            engine.submit(first, sink)
            engine.drain()
            engine.submit(later, sink)
            engine.drain()
        finally:
            engine.close()
    assert set(sink.failures) == set(range(60))


def test_a_silent_server_is_asked_again_after_the_idle_timeout() -> None:
    asked = requests(4)

    def silent_once(call: Call) -> Reply:
        reply = right(call)
        reply.delay_s = 5.0 if call.place == 1 and not call.is_preflight else 0.0
        return reply

    with FaultServer(silent_once) as server:
        result = run(settings(server, idle_timeout_s=0.3), asked)
    result.require_all(asked)
    assert result.facts["retries"] == {"timeout_idle": 1}


def test_a_server_that_is_not_there_at_the_start_is_named() -> None:
    with FaultServer() as server, FaultServer() as gone:
        config = settings(server, gone)
        gone.stop()
        with pytest.raises(EngineError, match=gone.url) as caught:
            run(config, requests(1))
    assert "start the server" in str(caught.value)


def test_a_wrong_model_is_refused_before_the_run_with_the_names_that_are_served() -> None:
    with (
        FaultServer() as server,
        pytest.raises(InputError, match=r"no model 'llama': m\.") as caught,
    ):
        run(settings(server, model="llama"), requests(1))
    assert caught.value.hint == "--set engine.endpoint.model=m"


BROKEN = {
    "more tokens": (completion([5] * (LIMIT + 3)), "returned 67 tokens where at most 64"),
    "after EOS": (completion([5, 6, EOS, 7], finish="length"), "went on for 1 tokens after EOS"),
    "second EOS": (completion([5, 6, EOS, EOS]), "went on for 1 tokens after EOS"),
    "empty": (completion([], finish="stop"), "without a token"),
    "no choices": ({"model": "m", "choices": []}, "finish_reason None"),
    "vocabulary": (completion([5, 32000, EOS]), "token id 32000, outside the vocabulary"),
    "negative": (completion([5, -1, EOS]), "token id -1"),
    "other model": (completion([5, 6, EOS], model="other"), "model 'other' instead of 'm'"),
    "cut off": (completion([5, 6, 7], finish="length"), "cut an answer off at 3 of 64"),
    "only EOS": (completion([EOS]), "does not heed min_tokens"),
    "lost tokens": (completion([5, 6, EOS], usage={"completion_tokens": 9}), "made 9"),
    "prompt": (completion([5, 6, EOS], usage={"prompt_tokens": 21}), "prompt of 21 tokens"),
    "finish": (completion([5, 6, EOS], finish="content_filter"), "content_filter"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_an_answer_that_breaks_the_contract_is_named_and_never_clipped(
    name: str, stream: str
) -> None:
    asked = requests(6)
    body, message = BROKEN[name]

    def breaks(call: Call) -> Reply:
        if call.place != 3 or call.is_preflight:
            return right(call)
        return Reply(events=[body]) if call.body.get("stream") else Reply(body)

    with FaultServer(breaks) as server:
        result = run(settings(server, stream=stream, concurrency=1), asked)
    if name == "no choices" and stream == "true":
        assert result.facts["retries"] == {"truncated": 1}
        return
    assert set(result.sink.failures) == {3}
    error = str(result.sink.failures[3])
    assert message in error
    assert server.url in error
    assert len(result.sink.completions) == 5
    assert result.facts["retries"] == {}
