"""The OpenAI API of `paceline serve`, through the official client and through bare HTTP."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from serving import Served, served


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("--engine", "fake", "--set", "engine.fake.output_len=20") as server:
        yield server


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, server: Served, prompt: Any, **more: Any) -> Any:
    more = {"max_tokens": 8, "temperature": 0} | more
    return client.completions.create(model=server.model, prompt=prompt, **more)


def test_the_model_is_listed_and_says_that_it_is_simulated(
    client: openai.OpenAI, server: Served
) -> None:
    (model,) = client.models.list().data
    assert model.id == server.model
    assert model.owned_by == "paceline"
    assert model.max_model_len == 544  # type: ignore[attr-defined]
    assert model.engine == "fake"  # type: ignore[attr-defined]
    assert model.simulated is True  # type: ignore[attr-defined]
    assert client.models.retrieve(server.model).id == server.model


def test_text_token_ids_and_lists_of_both_are_prompts(
    client: openai.OpenAI, server: Served
) -> None:
    ids = {"extra_body": {"return_token_ids": True}}
    one = ask(client, server, "Hello there", **ids)
    prompt_ids = one.choices[0].prompt_token_ids
    assert one.usage.prompt_tokens == len(prompt_ids)
    assert one.usage.completion_tokens == len(one.choices[0].token_ids) == 8
    assert one.usage.total_tokens == len(prompt_ids) + 8
    as_ids = ask(client, server, prompt_ids, **ids)
    assert as_ids.choices[0].token_ids == one.choices[0].token_ids
    assert as_ids.choices[0].text == one.choices[0].text
    for prompts in (["Hello there", "Bye"], [prompt_ids, [5, 6]]):
        many = ask(client, server, prompts, **ids)
        assert [choice.index for choice in many.choices] == [0, 1]
        assert many.choices[0].token_ids == one.choices[0].token_ids
        assert many.choices[1].token_ids != one.choices[0].token_ids
        assert many.usage.completion_tokens == 16


def test_ids_are_given_only_when_asked_for(client: openai.OpenAI, server: Served) -> None:
    choice = ask(client, server, "Hello").choices[0]
    assert not hasattr(choice, "token_ids")
    assert not hasattr(choice, "prompt_token_ids")


def test_an_answer_that_ends_with_eos_says_stop(client: openai.OpenAI, server: Served) -> None:
    answer = ask(client, server, "Hello", max_tokens=40, extra_body={"return_token_ids": True})
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].token_ids[-1] == 2
    assert answer.usage.completion_tokens == 20
    assert "<|" not in answer.choices[0].text


@pytest.mark.parametrize("prompt", ["Hello there", ["Hello there", "Bye"]])
def test_a_stream_is_the_whole_answer_in_parts(
    client: openai.OpenAI, server: Served, prompt: Any
) -> None:
    extra = {"extra_body": {"return_token_ids": True}}
    whole = ask(client, server, prompt, **extra)
    parts = list(
        ask(client, server, prompt, stream=True, stream_options={"include_usage": True}, **extra)
    )
    assert parts[-1].usage == whole.usage
    assert parts[-1].choices == []
    for choice in whole.choices:
        own = [p.choices[0] for p in parts[:-1] if p.choices[0].index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [i for part in own for i in part.token_ids] == choice.token_ids
        assert own[0].prompt_token_ids == choice.prompt_token_ids
        assert [part.finish_reason for part in own[-1:]] == [choice.finish_reason]
        assert all(part.finish_reason is None for part in own[:-1])
    assert len({part.id for part in parts}) == 1


def test_echo_puts_the_prompt_before_the_answer(client: openai.OpenAI, server: Served) -> None:
    plain = ask(client, server, "Hello there").choices[0].text
    assert ask(client, server, "Hello there", echo=True).choices[0].text == "Hello there" + plain
    parts = ask(client, server, "Hello there", echo=True, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "Hello there" + plain


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_stop_text_ends_the_answer_before_it(
    client: openai.OpenAI, server: Served, is_streaming: bool
) -> None:
    extra = {"extra_body": {"return_token_ids": True}, "max_tokens": 20}
    whole = ask(client, server, "Hello there", **extra).choices[0]
    stop = whole.text[len(whole.text) // 2 :][:4]
    answer = ask(client, server, "Hello there", stop=[stop], stream=is_streaming, **extra)
    choices = [part.choices[0] for part in answer] if is_streaming else answer.choices
    assert "".join(choice.text for choice in choices) == whole.text[: whole.text.find(stop)]
    ids = [i for choice in choices for i in choice.token_ids]
    assert ids == whole.token_ids[: len(ids)]
    assert len(ids) < len(whole.token_ids)
    assert choices[-1].finish_reason == "stop"
    assert choices[-1].stop_reason == stop
    if not is_streaming:
        assert answer.usage.completion_tokens == len(ids)


def test_what_means_nothing_to_greedy_decoding_is_taken(server: Served) -> None:
    neutral = {
        "top_p": 1.0,
        "top_k": -1,
        "n": 1,
        "best_of": 1,
        "seed": 7,
        "user": "me",
        "logit_bias": None,
        "frequency_penalty": 0,
        "repetition_penalty": 1.0,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "suffix": None,
        "cache_prompt": False,
    }
    status, answer = server.post({"prompt": "Hi", "temperature": 0.0, **neutral})
    assert status == 200
    assert "X-Paceline-Note" not in answer["headers"]


def test_an_absent_temperature_is_noted(server: Served) -> None:
    before = server.metric('notes_total{note="no_temperature"}') if _noted(server) else 0
    _, answer = server.post({"prompt": "Hi"})
    assert "temperature was not given" in answer["headers"]["X-Paceline-Note"]
    assert server.metric('notes_total{note="no_temperature"}') == before + 1


def _noted(server: Served) -> bool:
    return "no_temperature" in server.get("/metrics")[1]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"temperature": 0.7}, "temperature", "decodes greedily"),
        ({"temperature": "0"}, "temperature", "decodes greedily"),
        ({"n": 2}, "n", "not supported"),
        ({"n": True}, "n", "not supported"),
        ({"logprobs": 0}, "logprobs", "not supported"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"ignore_eos": True}, "ignore_eos", "not supported"),
        ({"logit_bias": {"2": -100}}, "logit_bias", "not supported"),
        ({"max_token": 5}, "max_token", "Did you mean 'max_tokens'?"),
        ({"zzz": None}, "zzz", "There is no key 'zzz'."),
        ({"max_tokens": 0}, "max_tokens", "1 or more"),
        ({"max_tokens": 2.0}, "max_tokens", "whole number"),
        ({"min_tokens": 9}, "min_tokens", "above max_tokens"),
        ({"stop": ""}, "stop", "none empty"),
        ({"stop": [1]}, "stop", "list of texts"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options", "include_usage"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": []}, "prompt", "may be empty"),
        ({"prompt": [1, "a"]}, "prompt", "list of texts"),
        ({"prompt": [[1], []]}, "prompt", "may be empty"),
        ({"prompt": [True]}, "prompt", "list of token ids"),
        ({"prompt": None}, "prompt", "must be a text"),
        ({"prompt": [49152]}, "prompt", "from 0 to 49151"),
        ({"prompt": [-1]}, "prompt", "from 0 to 49151"),
        ({"prompt": [5] * 540}, "prompt", "maximum context length is 544 tokens"),
        ({"prompt": [5], "max_tokens": 544}, "prompt", "(1 in your prompt; 544"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    server: Served, change: dict[str, Any], param: str, says: str
) -> None:
    status, answer = server.post({"prompt": "Hi", "max_tokens": 8, "temperature": 0} | change)
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
    assert says in answer["error"]["message"]


def test_the_clients_own_exceptions_are_raised(client: openai.OpenAI, server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, server, [5] * 540)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-5'"):
        client.completions.create(model="gpt-5", prompt="Hi")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": "a', b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_a_400(server: Served, body: bytes) -> None:
    status, answer = server.post(body)
    assert status == 400
    assert answer["error"]["code"] == "invalid_json"


def test_other_paths_methods_and_types_are_refused_as_openai_would(server: Served) -> None:
    status, answer = server.post({}, "/v1/chat/completions")
    assert status == 404
    assert "POST /v1/completions" in answer["error"]["message"]
    assert server.get("/v1/completions")[0] == 405
    assert server.get("/v1/models/other")[0] == 404
    status, answer = server.post(b"{}", **{"Content-Type": "text/plain"})
    assert (status, answer["error"]["message"][:4]) == (415, "Send")


def test_health_version_and_metrics(server: Served) -> None:
    assert server.get("/health") == (200, '{"status":"ok"}')
    assert '"engine":"fake"' in server.get("/version")[1]
    before = server.metric("generation_tokens_total")
    server.post({"prompt": [[5, 6, 7], [8]], "max_tokens": 4, "temperature": 0})
    assert server.metric("generation_tokens_total") == before + 8
    assert server.metric("prompts_in_flight") == server.metric("prompts_queued") == 0
    _, text = server.get("/metrics")
    sample = r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+'
    for line in text.splitlines():
        assert re.fullmatch(rf"# (HELP|TYPE) paceline_[a-z_]+ .+|{sample}", line), line
    buckets = re.findall(r"paceline_request_duration_seconds_bucket.* (\d+)", text)
    assert list(map(int, buckets)) == sorted(map(int, buckets))
    assert int(buckets[-1]) == server.metric("request_duration_seconds_count")


def test_a_key_is_wanted_when_one_is_set() -> None:
    environment = os.environ | {"PACELINE_SERVE_API_KEY": "sesame"}
    with served("--engine", "fake", env=environment) as server:
        body = {"prompt": "Hi", "temperature": 0}
        assert server.post(body)[0] == 401
        assert server.post(body, Authorization="Bearer sesam")[0] == 401
        assert server.post(body, Authorization="Bearer sesame")[0] == 200
        assert server.get("/v1/models")[0] == 401
        assert server.get("/health")[0] == 200
