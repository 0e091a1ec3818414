"""Whole runs over an endpoint: the command line, real LoadGen, real HTTP, servers that fail."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import Outcome, Paceline

from fault_server import EOS, Call, FaultServer, Reply, answer_ids, completion, right
from paceline import config
from paceline.errors import InputError
from paceline.submission import matching, measurements

pytestmark = pytest.mark.timed

RUN = ("run", "--engine", "endpoint", "--mode", "performance", "--out", "run")
QUICK = ("--set", "engine.endpoint.backoff_s=0.02")


def manifest(folder: Path) -> Any:
    return json.loads((folder / "run" / "manifest.json").read_text())


def over(paceline: Paceline, server: FaultServer, *arguments: str, **options: Any) -> Outcome:
    urls = f"engine.endpoint.urls={server.url}"
    return paceline(*RUN, *QUICK, "--set", urls, *arguments, **options)


def test_a_run_over_a_server_that_fails_now_and_then_is_valid_and_says_what_happened(
    paceline: Paceline, tmp_path: Path
) -> None:
    def shaky(call: Call) -> Reply:
        reply = right(call)
        if not call.is_preflight and call.place % 10 == 3:
            return Reply({}, status=503)
        if not call.is_preflight and call.place % 10 == 6:
            reply.cut = 40
        return reply

    with FaultServer(shaky, card={"simulated": True}) as server:
        outcome = over(
            paceline,
            server,
            *("--set", "engine.endpoint.retries=20", "--set", "loadgen.min_query_count=64"),
            *("--set", "engine.endpoint.api_key_env=OUR_KEY"),
            env=os.environ | {"OUR_KEY": "s3cret-key"},
        )
    assert outcome.code == 0, outcome
    made = manifest(tmp_path)
    engine = made["tests"]["performance"]["engine"]
    assert engine["servers"][0]["answered"] == 64
    assert engine["retries"]["http_503"] >= 6
    assert engine["retries"]["reset"] >= 6
    assert len(server.asked) == 64 + sum(engine["retries"].values())
    assert (engine["model"], made["model"]) == ("m", None)
    assert matching.is_simulated(a_test(engine))
    for said in ("VALID", "sent again", "no model made these tokens", "alone it could do"):
        assert said in outcome.out
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert any("sent again" in note for note in verdict["notes"])
    require_no_key(server, tmp_path, outcome)


def require_no_key(server: FaultServer, folder: Path, outcome: Outcome) -> None:
    """The key went to the server, and nowhere else."""
    assert server.asked[0].headers["authorization"] == "Bearer s3cret-key"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"s3cret" in path.read_bytes()]
    assert "s3cret" not in outcome.out + outcome.err


def test_a_run_of_the_network_division_names_the_servers_to_loadgen(
    paceline: Paceline, tmp_path: Path
) -> None:
    with FaultServer(right) as server:
        more = ("--set", "run.network=true", "--set", "loadgen.min_query_count=16")
        outcome = over(paceline, server, *more)
    assert outcome.code == 0, outcome
    log = (tmp_path / "run" / "performance" / "mlperf_log_detail.txt").read_text()
    (name,) = [line for line in log.splitlines() if '"sut_name"' in line]
    assert "Network SUT" in name
    assert server.url.removeprefix("http://") in name


def test_a_request_that_fails_for_good_ends_the_run_by_its_sample(
    paceline: Paceline, tmp_path: Path
) -> None:
    def refuses(call: Call) -> Reply:
        bad = call.place == 5 and not call.is_preflight
        return Reply({"error": "out of pages"}, status=400) if bad else right(call)

    with FaultServer(refuses) as server:
        outcome = over(paceline, server)
    assert outcome.code == 3
    assert "Sample " in outcome.err
    assert "out of pages" in outcome.err
    assert manifest(tmp_path)["status"] == "INCOMPLETE"


def test_a_run_without_a_size_is_sized_by_a_measurement(paceline: Paceline, tmp_path: Path) -> None:
    def paced(call: Call) -> Reply:
        reply = right(call)
        reply.delay_s = 0.0 if call.is_preflight else 0.05
        return reply

    with FaultServer(paced) as server:
        outcome = over(
            paceline,
            server,
            *("--set", "loadgen.min_duration_ms=3000", "--set", "run.probe_s=2"),
            *("--set", "engine.endpoint.concurrency=4"),
        )
    made = manifest(tmp_path)
    # 4 in flight of 50 ms each are 80 samples/s, or fewer on a machine that is busy.
    assert 20 < made["probe"]["samples_per_second"] < 90
    target_qps = made["config"]["loadgen"]["target_qps"]
    assert target_qps >= made["probe"]["samples_per_second"]
    # LoadGen asks for a tenth more than the minimum duration holds at that rate.
    assert len(server.asked) >= made["probe"]["answered"] + int(target_qps * 3.0)
    assert "preflight: measured" in outcome.err


def test_the_preflight_verb_checks_and_predicts(paceline: Paceline) -> None:
    metrics = {"/metrics": 'vllm:cache_config_info{enable_prefix_caching="True"} 1'}
    with FaultServer(gets=metrics | {"/version": {"version": "0.25.1"}}) as server:
        base = ("preflight", "--set", f"engine.endpoint.urls={server.url}", "--seconds")
        warned = paceline(*base, "1", "--set", "engine.endpoint.preflight=warn")
        strict = paceline(*base, "0")
    assert (warned.code, strict.code) == (1, 3)
    for said in ("0.25.1", "greedy determinism", "FAIL", "--set loadgen.target_qps="):
        assert said in warned.out
    assert "no-enable-prefix-caching" in strict.err


def test_bench_endpoint_counts_what_came_back(paceline: Paceline) -> None:
    facts = paceline("bench", "endpoint", "--requests", "500", "--tokens", "30", "--json").json
    assert facts["requests"] == 500
    assert facts["requests_per_second"] == pytest.approx(500 / facts["seconds"], rel=0.01)
    assert facts["tokens_per_second"] == pytest.approx(30 * 500 / facts["seconds"], rel=0.01)


def resolved(*overrides: str) -> config.RunConfig:
    flags = {"engine.name": "endpoint"}
    return config.resolve(config.read_settings(None, overrides, flags=flags), "v6.1")


def test_an_endpoint_needs_urls_and_no_model() -> None:
    with pytest.raises(InputError, match="urls is empty"):
        resolved()
    run = resolved("engine.endpoint.urls=http://a:1, http://b:2/")
    assert run.engine_config.urls == ("http://a:1", "http://b:2")
    assert run.model_path is None
    assert run.tokenizer_path is not None
    assert config.RunConfig.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_urls_may_be_a_list_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[engine.endpoint]\nurls = ['http://a:1', 'http://b:2']\n")
    settings = config.read_settings(recipe, flags={"engine.name": "endpoint"})
    assert settings["engine.endpoint.urls"].value == ("http://a:1", "http://b:2")
    recipe.write_text("[engine.endpoint]\nurls = [1, 2]\n")
    with pytest.raises(InputError, match="a list of texts"):
        config.read_settings(recipe)


def test_the_real_benchmark_over_an_endpoint_needs_a_tokenizer(tmp_path: Path) -> None:
    data = tmp_path / "orca.parquet"
    data.touch()
    asked = (
        *("run.benchmark=llama2-70b-99.9", f"data.path={data}"),
        "engine.endpoint.urls=http://a:1",
    )
    with pytest.raises(InputError, match="tokenizer") as caught:
        resolved(*asked)
    assert "data.tokenizer=" in str(caught.value.hint)
    run = resolved(*asked, f"data.tokenizer={tmp_path}")
    assert (run.tokenizer_path, run.shortfalls) == (tmp_path, ())


def a_test(engine: dict[str, Any], *, name: str = "performance") -> matching.Test:
    """A VALID, PASS test over an endpoint, as data."""
    return matching.Test(
        name=name,
        run_dir=Path("run"),
        manifest={
            "config": {
                "benchmark": "llama2-70b-99.9",
                "scenario": "Offline",
                "engine": "endpoint",
                "engine_config": {"dtype": "fp8"},
                "model_path": None,
            },
            "model": None,
            "tests": {name: {"engine": engine}},
        },
        verdict={"result": "VALID", "accuracy": "PASS", "compliance": "PASS"},
    )


def result(engine: dict[str, Any]) -> matching.Result:
    exact = {"exact_token_ids": True, "preflight": []}
    return matching.Result(
        performance=a_test(exact),
        accuracy=a_test(engine, name="accuracy"),
        compliance=a_test(exact, name="compliance"),
    )


CACHING = {
    "name": "prefix caching",
    "server": "http://a:1",
    "passed": False,
    "detail": "on",
    "hint": "turn it off",
}


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"exact_token_ids": False}, "accuracy: the server gave text only"),
        ({"exact_token_ids": True, "preflight": [CACHING]}, "failed the check 'prefix caching'"),
    ],
)
def test_closed_refuses_tokens_that_are_not_exact_and_checks_that_failed(
    engine: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        matching.require_measured(result(engine), division="closed")
    matching.require_measured(result(engine), division="open")


def test_closed_takes_an_exact_endpoint() -> None:
    unknown = CACHING | {"passed": None}
    exact = result({"exact_token_ids": True, "preflight": [unknown]})
    matching.require_measured(exact, division="closed")


def test_the_weights_of_an_endpoint_are_named_as_they_are_served() -> None:
    made = measurements.measurements(result({}))
    assert made["weight_data_types"] == "fp8"
    served = measurements.measurements(
        matching.Result(
            performance=a_test({"model": "llama2-70b-fp8"}),
            accuracy=a_test({}, name="accuracy"),
            compliance=None,
        )
    )
    assert "llama2-70b-fp8" in served["starting_weights_filename"]


def test_the_ids_of_a_run_are_those_of_the_server(paceline: Paceline, tmp_path: Path) -> None:
    """Accuracy logs hold exactly what came over HTTP."""

    def known(call: Call) -> Reply:
        return Reply(completion([*answer_ids(call.prompt, 50)[:3], EOS]))

    with FaultServer(known) as server:
        over(paceline, server, "--mode", "accuracy", "--set", "run.num_samples=4")
    log = json.loads((tmp_path / "run" / "accuracy" / "mlperf_log_accuracy.json").read_text())
    got = {bytes.fromhex(entry["data"]) for entry in log}
    want = {
        b"".join(t.to_bytes(4, "little") for t in [*answer_ids(call.prompt, 50)[:3], EOS])
        for call in server.asked
    }
    assert got == want
    assert len(got) == 4
