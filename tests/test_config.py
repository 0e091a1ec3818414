"""Recipes, overrides and flags: one value each, with its origin, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline import config
from paceline.errors import InputError, RecipeError
from paceline.mlperf import rules

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


def resolved(*overrides: str, **flags: str) -> config.RunConfig:
    names = {key.replace("__", "."): value for key, value in flags.items()}
    settings = config.read_settings(None, overrides, flags=names)
    return config.resolve(settings, "v6.1")


def test_no_recipe_is_the_demo() -> None:
    run = resolved()
    assert (run.benchmark, run.engine, run.scenario) == ("smollm2-135m-99", "reference", "Offline")
    assert run.num_samples == 96
    assert "not one of MLPerf's" in run.shortfalls[0]


def test_a_later_origin_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[engine.reference]\nbatch_size = 4\ndtype = 'bfloat16'\n")
    settings = config.read_settings(recipe, ["engine.reference.batch_size=8"])
    assert settings["engine.reference.batch_size"] == config.Setting(8, "--set")
    assert settings["engine.reference.dtype"] == config.Setting("bfloat16", "recipe r.toml")
    assert settings["run.mode"].origin == "default"


def test_a_typo_names_the_nearest_key(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[engine.reference]\nbatchsize = 4\n")
    with pytest.raises(RecipeError, match=r"did you mean 'engine\.reference\.batch_size'"):
        config.read_settings(recipe)


@pytest.mark.parametrize(
    "override",
    [
        "engine.reference.batch_size=many",
        "engine.reference.batch_size=true",
        "engine.reference.batch_size=1.5",
        "data.trust_pickle=1",
        "loadgen.target_qps=fast",
        "run.mode=3",
    ],
)
def test_a_value_of_the_wrong_type_is_refused(override: str) -> None:
    with pytest.raises(RecipeError, match="must be"):
        config.read_settings(None, [override])


@pytest.mark.parametrize(
    "override",
    [
        "run.mode=performence",
        "run.scenario=Ofline",
        "engine.name=referense",
        "run.benchmark=llama2-70b",
        "run.round=v9",
        "engine.reference.dtype=fp8",
        "engine.reference.batch_size=0",
        "run.num_samples=97",
        "loadgen.target_qps=0",
        "model.path=/nowhere",
        "data.path=/nowhere",
    ],
)
def test_a_value_that_cannot_run_is_refused_with_the_way_out(override: str) -> None:
    with pytest.raises(InputError) as caught:
        resolved(override)
    assert caught.value.hint


def test_a_text_of_true_or_false_may_be_written_as_toml_has_them(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[engine.endpoint]\nstream = true\n")
    assert config.read_settings(recipe)["engine.endpoint.stream"].value == "true"
    override = config.read_settings(
        None, ["engine.endpoint.stream=false"], flags={"engine.name": "endpoint"}
    )
    assert override["engine.endpoint.stream"].value == "false"


SERVER = ("run.scenario=Server", "engine.name=fake")


def test_a_latency_bound_scenario_needs_a_rate_or_a_search() -> None:
    with pytest.raises(RecipeError, match=r"target_qps is auto.*\n.*--find-qps"):
        resolved(*SERVER)
    assert resolved(*SERVER, "loadgen.target_qps=2.5").loadgen.target_qps == 2.5
    searched = resolved(*SERVER, "run.find_qps=true", "loadgen.target_qps=2.5")
    assert searched.loadgen.target_qps is None
    assert searched.find_qps is not None
    assert (searched.find_qps.start_qps, searched.find_qps.probe_queries) == (2.5, 81)
    assert config.RunConfig.from_json(json.loads(json.dumps(searched.as_json()))) == searched


@pytest.mark.parametrize(
    "overrides",
    [
        ("run.scenario=Offline", "run.find_qps=true"),
        ("run.scenario=Server", "run.find_qps=true", "run.mode=accuracy"),
        ("run.scenario=Server", "run.find_qps=true", "find_qps.precision=0.9"),
        ("run.scenario=Server", "run.find_qps=true", "find_qps.attempts=0"),
        ("run.scenario=Server", "loadgen.target_qps=5", "find_qps.probe_s=5"),
        ("run.scenario=Server", "loadgen.target_qps=-1"),
        ("run.scenario=Server", "loadgen.target_qps=5", "run.network=true"),
    ],
)
def test_a_search_or_a_network_that_makes_no_sense_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved("engine.name=fake", *overrides)
    assert caught.value.hint


def test_the_rounds_limits_stand_for_mlperf_and_our_own_for_the_demo(tmp_path: Path) -> None:
    data = tmp_path / "orca.parquet"
    data.touch()
    rate = "loadgen.target_qps=80"
    real = resolved(
        "run.benchmark=llama2-70b-99.9", f"data.path={data}", "engine.name=fake", *SERVER[:1], rate
    )
    assert (real.loadgen.ttft_ms, real.loadgen.latency_percentile) == (None, None)
    assert (real.loadgen.min_query_count, real.loadgen.min_duration_ms) == (24576, 600_000)
    assert real.shortfalls == ("the fake engine runs no model",)
    demo = resolved(*SERVER, rate)
    assert (demo.loadgen.ttft_ms, demo.loadgen.tpot_ms) == (3000, 500)
    assert (demo.loadgen.latency_percentile, demo.loadgen.min_query_count) == (90, 81)


def test_an_override_for_another_engine_is_refused() -> None:
    with pytest.raises(RecipeError, match="would do nothing"):
        resolved("engine.fake.output_len=5")


def test_the_real_benchmark_needs_model_and_data_by_name() -> None:
    with pytest.raises(InputError, match="checkpoint"):
        resolved(run__benchmark="llama2-70b-99.9")
    with pytest.raises(InputError, match="OpenOrca"):
        resolved(run__benchmark="llama2-70b-99.9", engine__name="fake")


def test_a_whole_run_of_the_real_benchmark_has_the_real_settings(tmp_path: Path) -> None:
    data = tmp_path / "orca.parquet"
    data.touch()
    run = resolved("run.benchmark=llama2-70b-99.9", f"data.path={data}", engine__name="fake")
    assert (run.num_samples, run.loadgen.min_query_count) == (24576, 24576)
    assert run.loadgen.min_duration_ms == 600_000
    assert run.shortfalls == ("the fake engine runs no model",)


@pytest.mark.parametrize(
    "override", ["run.num_samples=10", "loadgen.min_duration_ms=1000", "loadgen.min_query_count=5"]
)
def test_every_shortcut_is_a_shortfall(override: str, tmp_path: Path) -> None:
    data = tmp_path / "orca.parquet"
    data.touch()
    base = ("run.benchmark=llama2-70b-99.9", f"data.path={data}")
    whole = resolved(*base, engine__name="fake").shortfalls
    assert len(resolved(*base, override, engine__name="fake").shortfalls) == len(whole) + 1


def test_99_is_refused_on_a_round_that_lost_it() -> None:
    with pytest.raises(InputError, match=r"v6\.1 has no 'llama2-70b-99'"):
        resolved("run.benchmark=llama2-70b-99", "run.round=v6.1")


def test_a_config_survives_the_manifest() -> None:
    run = resolved("engine.reference.batch_size=7", "run.num_samples=12")
    assert config.RunConfig.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_a_missing_recipe_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        config.read_settings(tmp_path / "none.toml")


def test_a_broken_recipe_says_where(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[run\n")
    with pytest.raises(RecipeError, match="line 1"):
        config.read_settings(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_has_known_keys_and_a_known_benchmark(recipe: Path) -> None:
    settings = config.read_settings(recipe)
    rules.benchmark(settings["run.benchmark"].value)
    if settings["run.benchmark"].value.startswith("smollm2"):
        config.resolve(settings, "v6.1")
    else:  # model and dataset are the user's to give
        with pytest.raises(InputError, match=r"checkpoint|dataset"):
            config.resolve(settings, "v6.1")
