"""The endpoint engine against servers that work: dialects, streaming, secrets, balance."""

from __future__ import annotations

import logging
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fault_server import (
    EOS,
    Call,
    FaultServer,
    Reply,
    answer_ids,
    chunks,
    completion,
    requests,
    right,
    run,
    settings,
)
from paceline.engines.endpoint import EndpointConfig
from paceline.errors import EngineError, InputError


class Codec:
    """A tokenizer whose words are numbers."""

    def ids_of(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def text_of(self, token_ids: list[int]) -> str:
        return " ".join(map(str, token_ids))


def slowly(call: Call) -> Reply:
    reply = right(call)
    reply.delay_s = 0.01
    return reply


def test_a_request_asks_for_greedy_decoding_and_ids() -> None:
    asked = requests(1)
    with FaultServer() as server:
        run(settings(server), asked).require_all(asked)
    body = server.asked[0].body
    assert body["prompt"] == asked[0].token_ids.tolist()
    wanted = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "min_tokens": 1, "model": "m"}
    assert wanted.items() <= body.items()
    assert body["return_token_ids"] is True
    assert "stream" not in body


def test_equal_servers_get_equal_shares() -> None:
    asked = requests(240)
    with FaultServer(slowly) as one, FaultServer(slowly) as two, FaultServer(slowly) as three:
        result = run(settings(one, two, three, concurrency=4), asked)
    result.require_all(asked)
    shares = [state["answered"] for state in result.facts["servers"]]
    assert max(shares) - min(shares) <= 24
    assert result.facts["device"] == "remote"
    assert result.facts["exact_token_ids"] is True


def test_few_requests_go_to_the_servers_with_the_fewest_outstanding() -> None:
    with FaultServer(slowly) as one, FaultServer(slowly) as two:
        result = run(settings(one, two, concurrency=50), requests(10))
    assert [state["most_in_flight"] for state in result.facts["servers"]] == [5, 5]


def test_eos_that_the_server_leaves_out_is_put_back_and_counted() -> None:
    asked = requests(12)

    def without_eos(call: Call) -> Reply:
        ids = answer_ids(call.prompt, call.body["max_tokens"])
        stopped = ids[-1] == EOS
        body = completion(ids[:-1] if stopped else ids, finish="stop" if stopped else "length")
        return Reply(body | {"usage": {"completion_tokens": len(ids)}})

    with FaultServer(without_eos) as server:
        result = run(settings(server), asked)
    result.require_all(asked)
    assert result.facts["counts"] == {"eos_appended": 12}


def test_a_stop_at_another_token_than_eos_is_an_error() -> None:
    def other_stop(call: Call) -> Reply:
        if call.is_preflight:
            return right(call)
        body = completion([5, 6, 9], finish="stop")
        body["choices"][0]["stop_reason"] = 9
        return Reply(body)

    with FaultServer(other_stop) as server:
        result = run(settings(server), requests(1))
    assert "stopped at 9" in result.sink.failures[0].message


def test_the_first_token_of_a_stream_is_pushed_long_before_the_answer_ends() -> None:
    asked = requests(4)

    def trickle(call: Call) -> Reply:
        reply = right(call)
        reply.event_delay_s = 0.0 if call.is_preflight else 0.05
        return reply

    with FaultServer(trickle) as server:
        result = run(settings(server), asked, streaming=True)
        end_s = time.monotonic()
    result.require_all(asked)
    assert result.facts["streaming"] is True
    for request in asked:
        token, moment_s = result.sink.first[request.request_id]
        assert token == result.sink.completions[request.request_id].token_ids[0]
        assert end_s - moment_s > 0.1
    total = sum(len(one.token_ids) for one in result.sink.completions.values())
    assert result.sink.made == total


def test_streaming_can_be_forbidden() -> None:
    asked = requests(3)
    with FaultServer() as server:
        result = run(settings(server, stream="false"), asked, streaming=True)
    result.require_all(asked)
    assert not any(call.body.get("stream") for call in server.calls)


def strict_trtllm(call: Call) -> Reply:
    """trtllm-serve refuses keys that it does not know."""
    known = {"model", "prompt", "max_tokens", "min_tokens", "temperature", "top_p", "detokenize"}
    known |= {"stream", "stream_options", "logit_bias", "repetition_penalty"}
    if extra := set(call.body) - known:
        return Reply({"message": f"extra keys {extra}"}, status=400)
    return right(call) if call.body.get("detokenize") is False else Reply(completion([]))


def old_sglang(call: Call) -> Reply:
    """An SGLang whose /v1/completions gives text only, and /generate ids, all of them each time."""
    if call.path == "/v1/completions":
        ids = answer_ids(call.prompt, call.body["max_tokens"])
        choice = {"text": "x", "finish_reason": "stop"}
        return Reply({"model": "m", "choices": [choice], "usage": {"completion_tokens": len(ids)}})
    ids = answer_ids(call.prompt, call.body["sampling_params"]["max_new_tokens"])
    finish = {"type": "stop", "matched": EOS} if ids[-1] == EOS else {"type": "length"}
    meta = {"prompt_tokens": len(call.prompt), "completion_tokens": len(ids)}
    events = [
        {"output_ids": ids[:end], "meta_info": meta | {"completion_tokens": end}}
        for end in range(1, len(ids))
    ]
    last = {"output_ids": ids, "meta_info": meta | {"finish_reason": finish}}
    return Reply(events=[*events, last]) if call.body["stream"] else Reply(last)


def llama_server(call: Call) -> Reply:
    """llama.cpp's own server: POST /completion with return_tokens."""
    if call.path != "/completion" or not call.body.get("return_tokens"):
        return Reply({"error": {"message": "not here"}}, status=404)
    assert call.body["cache_prompt"] is False
    ids = answer_ids(call.prompt, call.body["n_predict"])
    end = {
        "stop": True,
        "stop_type": "eos" if ids[-1] == EOS else "limit",
        "stopping_word": "",
        "tokens_evaluated": len(call.prompt),
        "tokens_predicted": len(ids),
        "model": "m",
    }
    if not call.body["stream"]:
        return Reply(end | {"tokens": ids, "content": "x"})
    events = [{"content": "x", "tokens": [token], "stop": False} for token in ids]
    return Reply(events=[*events, end | {"tokens": [], "content": ""}])


KINDS: dict[str, tuple[Any, str, str]] = {
    "trtllm": (strict_trtllm, "tensorrt_llm", "detokenize-off"),
    "sglang": (old_sglang, "sglang", "generate"),
    "llamacpp": (llama_server, "llamacpp", "return-tokens"),
    "paceline": (right, "paceline", "token-ids"),
    "openai": (right, "somebody", "token-ids"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_server_is_known_and_asked_in_its_own_way(kind: str, streaming: bool) -> None:
    asked = requests(8)
    behave, owner, dialect = KINDS[kind]
    with FaultServer(behave, card={"owned_by": owner}) as server:
        result = run(settings(server), asked, streaming=streaming)
    result.require_all(asked)
    facts = result.facts["servers"][0]
    assert (facts["kind"], facts["dialect"]) == (kind, dialect)
    assert result.facts["exact_token_ids"]
    assert not result.facts["counts"]
    for request in asked:
        first = result.sink.completions[request.request_id].token_ids[0]
        assert result.sink.first[request.request_id][0] == first


def text_only(call: Call) -> Reply:
    """llama-cpp-python's server: text in, text out, EOS never in it."""
    if not isinstance(call.prompt, str):
        return Reply({"detail": "Input should be a valid string"}, status=422)
    prompt = [int(word) for word in call.prompt.split()]
    ids = answer_ids(prompt, call.body["max_tokens"])
    stopped = ids[-1] == EOS
    words = [str(token) for token in (ids[:-1] if stopped else ids)]
    choice = {"text": " ".join(words), "finish_reason": "stop" if stopped else "length"}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
    if not call.body.get("stream"):
        return Reply({"model": "m", "choices": [choice], "usage": usage})
    events = [{"model": "m", "choices": [{"text": f"{word} "}]} for word in words]
    return Reply(events=[*events, {"model": "m", "choices": [choice | {"text": ""}]}])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_server_of_text_is_used_but_never_called_exact(streaming: bool) -> None:
    asked = requests(8)
    with FaultServer(text_only, card={"owned_by": "me"}) as server:
        result = run(settings(server), asked, codec=Codec, streaming=streaming)
    result.require_all(asked)
    assert result.facts["exact_token_ids"] is False
    assert result.facts["counts"] == {"retokenised": 8, "eos_appended": 8}
    assert any("not exact" in note for note in result.facts["notes"])
    for request in asked:
        first = result.sink.completions[request.request_id].token_ids[0]
        assert result.sink.first[request.request_id][0] == first


def test_a_server_of_text_needs_a_tokenizer_and_says_so() -> None:
    with (
        FaultServer(text_only, card={"owned_by": "me"}) as server,
        pytest.raises(EngineError, match=r"needs a tokenizer \(data\.tokenizer\)"),
    ):
        run(settings(server), requests(1))


def test_text_that_gives_more_ids_than_were_made_is_clipped_and_counted() -> None:
    def long_text(call: Call) -> Reply:
        if call.is_preflight:
            return text_only(call)
        choice = {"text": " ".join(["7"] * 80), "finish_reason": "length"}
        return Reply({"model": "m", "choices": [choice]})

    with FaultServer(long_text, card={"owned_by": "me"}) as server:
        result = run(settings(server), requests(2), codec=Codec)
    assert result.facts["counts"]["retokenised_clipped"] == 2
    assert len(result.sink.completions[0].token_ids) == 64


def test_a_simulated_server_is_never_taken_for_a_real_one() -> None:
    with FaultServer(card={"simulated": True}) as server, FaultServer() as real:
        result = run(settings(real, server), requests(2))
    assert result.facts["simulated"] is True
    assert any("simulated" in note for note in result.facts["notes"])


def test_an_api_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OUR_KEY", "s3cret-key")

    def echoes(call: Call) -> Reply:
        if call.is_preflight:
            return right(call)
        return Reply({"error": f"denied: {call.headers['authorization']}"}, status=403)

    with FaultServer(echoes) as server:
        result = run(settings(server, api_key_env="OUR_KEY"), requests(2))
    assert server.asked[0].headers["authorization"] == "Bearer s3cret-key"
    assert "denied: Bearer (key)" in result.sink.failures[0].message
    everything = caplog.text + repr(result) + str(result.sink.failures)
    assert "s3cret-key" not in everything


def test_a_key_that_is_not_in_the_environment_is_asked_for() -> None:
    with FaultServer() as server, pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        run(settings(server, api_key_env="NO_SUCH_KEY"), requests(1))


def test_certificates_are_checked_unless_told_otherwise(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    asked = requests(3)
    with FaultServer(tls=(certificate, key)) as server:
        with pytest.raises(EngineError, match="no certificate to trust"):
            run(settings(server), asked)
        assert not server.calls
        trusted = run(settings(server, ca_bundle=str(certificate)), asked)
        unchecked = run(settings(server, verify_tls=False), asked)
    trusted.require_all(asked)
    unchecked.require_all(asked)
    assert (trusted.facts["verify_tls"], unchecked.facts["verify_tls"]) == (True, False)
    assert any("certificates are not checked" in note for note in unchecked.facts["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"urls": ()}, "urls is empty"),
        ({"urls": ("localhost:8000",)}, "is no URL"),
        ({"urls": ("http://h:1/v1",)}, "ends with /v1"),
        ({"urls": ("http://user:pw@h:1",)}, "holds a login"),
        ({"urls": ("http://h:1", "http://h:1/")}, "names a server twice"),
        ({"server": "tgi"}, "server is 'tgi'"),
        ({"stream": "yes"}, "stream is 'yes'"),
        ({"preflight": "off"}, "preflight is 'off'"),
        ({"concurrency": 0}, "too small"),
        ({"connect_timeout_s": 0.0}, "too small"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        EndpointConfig(**({"urls": ("http://h:1",)} | changes))
    assert "pw" not in str(caught.value)


def test_a_retried_stream_that_begins_otherwise_is_an_error() -> None:
    def two_minds(call: Call) -> Reply:
        reply = right(call)
        if call.is_preflight:
            return reply
        ids = [5 + call.place, 6, EOS]
        cut = 2 if call.place == 0 else None
        return Reply(events=chunks(ids, {"completion_tokens": 3}), cut=cut)

    with FaultServer(two_minds) as server:
        result = run(settings(server, stream="true"), requests(1))
    assert "not deterministic" in result.sink.failures[0].message
