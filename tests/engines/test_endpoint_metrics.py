"""What servers tell at /metrics, and that what they do not tell stays unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serving import served
from support import Paceline, wait_until

from fault_server import Call, FaultServer, Reply, context, requests, right, settings
from paceline.engines import EngineState, Part, Request, endpoint_metrics
from paceline.engines.endpoint import EndpointEngine
from paceline.engines.endpoint_metrics import Gauges, gauges_of, with_gauges
from paceline.serve.metrics import Metrics

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 250.0
vllm:num_requests_running{engine="1",model_name="m"} 200.0
vllm:num_requests_waiting{engine="0",model_name="m"} 6.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.9
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
"""
SGLANG = """\
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 17.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 17.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 4.0
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.125
"""


def test_vllms_engines_are_added_up_and_their_caches_averaged() -> None:
    assert gauges_of(VLLM) == Gauges(running=450, waiting=6, kv_used_fraction=0.375, preemptions=3)
    old = VLLM.replace("kv_cache_usage_perc", "other")
    assert gauges_of(old).kv_used_fraction == 0.9


def test_sglangs_ranks_of_one_model_are_counted_once_and_what_it_lacks_is_unknown() -> None:
    assert gauges_of(SGLANG) == Gauges(running=17, waiting=4, kv_used_fraction=0.125)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[{"gpuMemUsage": 1, "numActiveRequests": 3}]',  # TensorRT-LLM's
        "vllm:num_requests_running NaN",
        "vllm:num_requests_running -1",
        "vllm:num_requests_running many",
        "xvllm:num_requests_running 3",
    ],
)
def test_what_is_no_figure_is_unknown_and_not_zero(text: str) -> None:
    assert gauges_of(text) == Gauges()


def test_our_own_page_is_read_back_with_what_the_engine_knows_only() -> None:
    page = Metrics().text(
        in_flight=9,
        queued=2,
        state=EngineState(
            live_sequences=5, waiting_sequences=4, kv_used_fraction=0.5, preemptions=0
        ),
    )
    assert gauges_of(page) == Gauges(running=5, waiting=6, kv_used_fraction=0.5, preemptions=0)
    assert gauges_of(Metrics().text(in_flight=9, queued=2, state=None)) == Gauges()


def test_servers_that_do_not_tell_leave_the_whole_unknown() -> None:
    parts = (Part(name="a", live_sequences=10), Part(name="b", live_sequences=20))
    state = EngineState(live_sequences=30, waiting_sequences=7, parts=parts)
    telling = Gauges(running=8, waiting=2, kv_used_fraction=0.5, preemptions=1)
    known = with_gauges(state, [telling, telling])
    assert known.as_json() | {"parts": None} == {
        "live_sequences": 16,
        "waiting_sequences": 21,  # the second has been sent twenty, and runs eight
        "queued_at_servers": 14,
        "kv_used_fraction": 0.5,
        "preemptions": 2,
        "parts": None,
    }
    assert [part.waiting_sequences for part in known.parts] == [2, 12]
    half = with_gauges(state, [telling, Gauges()])
    assert (half.live_sequences, half.waiting_sequences) == (28, 9)
    assert (half.kv_used_fraction, half.preemptions) == (None, None)
    none = with_gauges(state, [Gauges(), Gauges()])
    assert none.as_json().keys() == {"live_sequences", "waiting_sequences", "parts"}
    assert (none.live_sequences, none.waiting_sequences, none.taken_on) == (30, 7, 30)


class Quiet:
    def first_token(self, *_: object) -> None: ...

    def progress(self, *_: object) -> None: ...

    def done(self, *_: object) -> None: ...

    def failed(self, *_: object) -> None: ...


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_metrics, "_EVERY_S", 0.05)
    monkeypatch.setattr(endpoint_metrics, "_FRESH_S", 0.5)


@pytest.mark.usefixtures("quickly")
def test_an_engine_shows_what_its_server_tells_until_it_falls_silent() -> None:
    with FaultServer(gets={"/metrics": VLLM}) as server:
        gets = server.gets
        engine = EndpointEngine(settings(server), context())
        engine.start()
        try:
            wait_until(lambda: engine.state().kv_used_fraction is not None, within_s=15)
            state = engine.state()
            assert (state.live_sequences, state.waiting_sequences) == (450, 6)
            assert state.preemptions == 0  # counted since the start
            gets["/metrics"] = VLLM.replace(" 3.0", " 8.0")
            wait_until(lambda: engine.state().preemptions == 5, within_s=15)
            gets["/metrics"] = VLLM.replace(" 3.0", " 2.0")  # started again
            wait_until(lambda: engine.state().preemptions == 7, within_s=15)
            (told,) = engine.describe()["servers"]
            assert told["metrics"]["known"][:2] == ["running", "waiting"]
            del gets["/metrics"]
            wait_until(lambda: engine.state().kv_used_fraction is None, within_s=15)
            assert engine.state() == EngineState(
                live_sequences=0, waiting_sequences=0, parts=engine.state().parts
            )
            assert engine.describe()["servers"][0]["metrics"]["misses"] > 0
        finally:
            engine.close()


@pytest.mark.usefixtures("quickly")
def test_a_server_without_metrics_is_asked_once_and_its_requests_count_as_live() -> None:
    def slow(call: Call) -> Reply:
        reply = right(call)
        if not call.is_preflight:
            reply.delay_s = 1.0
        return reply

    with FaultServer(slow) as server:
        engine = EndpointEngine(settings(server), context())
        engine.start()
        try:
            wait_until(
                lambda: engine.describe()["servers"][0]["metrics"]["misses"] == 1, within_s=15
            )
            some: list[Request] = requests(3)
            engine.submit(some, Quiet())  # type: ignore[arg-type]
            wait_until(lambda: engine.state().live_sequences == 3, within_s=15)
            state = engine.state()
            assert (state.waiting_sequences, state.kv_used_fraction) == (0, None)
            engine.drain()
            facts = engine.describe()["servers"][0]["metrics"]
            assert (facts["known"], facts["reads"], facts["misses"]) == ([], 0, 1)
            assert "HTTP 404" in facts["last_miss"]
        finally:
            engine.close()


def test_a_runs_timeline_has_the_queue_of_its_server_and_no_cache_that_is_not_told(
    paceline: Paceline, tmp_path: Path
) -> None:
    # 88 answers of 32 tokens and more: some five seconds.
    pace = ("--set", "engine.fake.tokens_per_second=600", "--set", "engine.fake.concurrency=2")
    with served("--engine", "fake", *pace) as server:
        outcome = paceline(
            *("run", "--engine", "endpoint", "--set", f"engine.endpoint.urls={server.url}"),
            *("--mode", "performance", "--set", "loadgen.min_query_count=80", "--out", "run"),
        )
    assert outcome.code == 0, outcome
    lines = (tmp_path / "run/performance/timeline.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    queued = [row for row in rows if row["live_sequences"] and row.get("queued_at_servers")]
    assert queued, rows
    assert all(row["live_sequences"] == 2 for row in queued)
    assert all(row["waiting_sequences"] >= row["queued_at_servers"] for row in queued)
    assert not any("kv_used_fraction" in row or "preemptions" in row for row in rows)
