"""What is found out before the clock starts, and what is refused then."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from fault_server import (
    EOS,
    Call,
    FaultServer,
    Reply,
    Result,
    completion,
    requests,
    right,
    run,
    settings,
)
from paceline.errors import EngineError, InputError

METRICS = 'vllm:cache_config_info{block_size="16",enable_prefix_caching="%s"} 1.0\n'


def checks(result: Result) -> dict[str, Any]:
    return {check["name"]: check["passed"] for check in result.facts["preflight"]}


def heeds_bias(call: Call) -> Reply:
    """As `right`, but EOS comes second when its bias says so, and the prompt is sent back."""
    reply = right(call)
    if call.body.get("logit_bias") == {str(EOS): 100}:
        reply.body = completion([9, EOS])
    reply.body["usage"] |= {"prompt_tokens": len(call.prompt)}
    reply.body["choices"][0]["prompt_token_ids"] = call.prompt
    return reply


def test_everything_that_can_be_known_of_a_good_server_is_on_record() -> None:
    gets = {"/version": {"version": "0.25.1"}, "/metrics": METRICS % "False"}
    card = {"max_model_len": 2048}
    with FaultServer(heeds_bias, gets=gets, card=card) as server:
        result = run(settings(server), requests(2), longest_prompt_len=1024)
    assert checks(result) == {
        "token ids": True,
        "context length": True,
        "token ids round trip": True,
        "greedy determinism": True,
        "EOS": True,
        "prefix caching": True,
    }
    facts = result.facts["servers"][0]
    assert (facts["kind"], facts["version"]) == ("vllm", "0.25.1")
    assert result.facts["model"] == "m"


def test_what_a_server_does_not_say_is_not_known_rather_than_passed() -> None:
    with FaultServer() as server:
        result = run(settings(server), requests(2))
    found = checks(result)
    assert (found["context length"], found["prefix caching"], found["EOS"]) == (None, None, None)


def two_answers() -> Any:
    counter = itertools.count()

    def behave(call: Call) -> Reply:
        return Reply(completion([5 + next(counter), 7, EOS])) if call.is_preflight else right(call)

    return behave


def adds_bos(call: Call) -> Reply:
    reply = right(call)
    reply.body["usage"] = {"prompt_tokens": len(call.prompt) + 1}
    return reply


def changes_prompt(call: Call) -> Reply:
    reply = right(call)
    reply.body["choices"][0]["prompt_token_ids"] = [1, *call.prompt[1:]]
    return reply


def ignores_eos(call: Call) -> Reply:
    if "logit_bias" in call.body:
        return Reply(completion([9, EOS, EOS], finish="stop"))
    return right(call)


def cached(call: Call) -> Reply:
    reply = right(call)
    reply.body["usage"]["prompt_tokens_details"] = {"cached_tokens": 48}
    return reply


BAD: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "greedy determinism": (two_answers, {}, {}, "one prompt gave two answers"),
    "token ids round trip": (lambda: adds_bos, {}, {}, "64 tokens sent, 65 seen"),
    "token ids round trip 2": (lambda: changes_prompt, {}, {}, "came back changed"),
    "EOS": (lambda: ignores_eos, {}, {}, "goes on after EOS"),
    "prefix caching": (lambda: right, {"/metrics": METRICS % "True"}, {}, "rules forbid it"),
    "prefix caching 2": (lambda: cached, {}, {}, "rules forbid it"),
    "context length": (lambda: right, {}, {"max_model_len": 1000}, "1000 tokens; the longest"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_check_that_fails_stops_the_run_before_any_request(name: str) -> None:
    make, gets, card, message = BAD[name]
    with FaultServer(make(), gets=gets, card=card) as server:
        with pytest.raises(EngineError, match=message) as caught:
            run(settings(server), requests(1), longest_prompt_len=1024)
        assert not server.asked
    assert server.url in caught.value.message


def test_a_check_that_fails_can_be_put_on_record_instead() -> None:
    asked = requests(3)
    with FaultServer(gets={"/metrics": METRICS % "True"}) as server:
        result = run(settings(server, preflight="warn"), asked)
    result.require_all(asked)
    assert checks(result)["prefix caching"] is False
    assert any("prefix caching: on" in note for note in result.facts["notes"])


def test_sglang_says_itself_whether_it_caches_prefixes() -> None:
    gets = {"/get_server_info": {"version": "0.5.11", "disable_radix_cache": True}}
    with FaultServer(card={"owned_by": "sglang"}, gets=gets) as server:
        result = run(settings(server), requests(1))
    assert checks(result)["prefix caching"] is True
    assert result.facts["servers"][0]["version"] == "0.5.11"


def test_one_model_of_several_must_be_named() -> None:
    models = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}, {"id": "n"}]}}
    asked = requests(2)
    with FaultServer(gets=models) as server:
        with pytest.raises(InputError, match=r"several models: m, n\."):
            run(settings(server), asked)
        run(settings(server, model="m"), asked).require_all(asked)


def test_something_that_is_no_openai_server_is_told_apart() -> None:
    with (
        FaultServer(gets={"/v1/models": {"hello": 1}}) as server,
        pytest.raises(EngineError, match="is not a list of models"),
    ):
        run(settings(server), requests(1))


def test_the_start_waits_for_a_server_that_is_still_loading() -> None:
    asked = requests(2)
    with FaultServer() as server:
        config = settings(server, start_timeout_s=20.0)
        server.stop()
        server_starts = _later(server, 0.7)
        run(config, asked).require_all(asked)
        server_starts.join()


def _later(server: FaultServer, wait_s: float) -> Any:
    timer = threading.Timer(wait_s, server.start)
    timer.start()
    return timer


def test_a_server_that_refuses_everything_tells_why() -> None:
    def broken(call: Call) -> Reply:
        return Reply({"error": {"message": "no GPU"}}, status=400)

    with FaultServer(broken) as server, pytest.raises(EngineError, match="no GPU"):
        run(settings(server), requests(1))
