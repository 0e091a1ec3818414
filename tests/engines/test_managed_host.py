"""Servers that the tests of one run share: when they are kept, when not, and what is said of it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from paceline.config import embedded_model
from paceline.engines import EngineContext, server_process, servers
from paceline.engines.managed_host import KeptServers, ManagedHost
from paceline.engines.managed_settings import ManagedConfig

CONFIG = ManagedConfig(preset="paceline", extra_args="--engine fake")
CHECK = {"name": "prefix caching", "server": "http://a", "passed": True, "detail": "off"}
CLEAN: dict[str, Any] = {"preflight": [CHECK], "notes": []}


@pytest.fixture
def context(tmp_path: Path) -> EngineContext:
    return EngineContext(
        model=embedded_model(),
        eos_token_id=2,
        vocabulary_size=49152,
        max_new_tokens=40,
        log_dir=tmp_path,
        kept=tmp_path / "kept.json",
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def host(tmp_path: Path, said: list[str]) -> Iterator[ManagedHost]:
    made = ManagedHost(cwd=tmp_path, note=said.append)
    yield made
    made.close()


def listeners(url: str) -> list[int]:
    """The server of an address, without its launcher."""
    port, found = url.rpartition(":")[2].encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if port in words and b"serve" in words and not words[1].startswith(b"-I"):
                found.append(int(folder.name))
    return found


def is_stopped(pid: int) -> bool:
    """Whether all threads are: one that has not yet got the signal still answers."""
    tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(text.rpartition(")")[2].split()[0] == "T" for text in tasks)


def urls(context: EngineContext) -> tuple[str, ...]:
    assert context.kept is not None
    kept = KeptServers(context.kept, on_lost=lambda account: None)
    kept.close()
    return kept.endpoint.urls


def test_the_servers_of_one_test_serve_the_next_and_end_with_the_run(
    host: ManagedHost, context: EngineContext, said: list[str]
) -> None:
    host.ready("performance", CONFIG, context)
    (url,) = urls(context)
    (server,) = listeners(url)
    first = host.ended(CLEAN)
    host.ready("accuracy", CONFIG, context)
    assert listeners(url) == [server]
    second = host.ended(CLEAN)
    assert [facts["num_starts"] for facts in (first, second)] == [1, 1]
    assert (first["started_for_test"], second["started_for_test"]) == ("performance",) * 2
    assert any("those of the performance test" in note for note in second["notes"])
    assert not any("those of" in note for note in first["notes"])
    assert second["processes"][0]["version"].startswith("paceline ")
    host.close()
    host.close()
    assert listeners(url) == []
    assert said == ["--engine native of the preset gives way to --engine fake"]


def test_a_server_that_died_between_tests_is_started_again_and_told(
    host: ManagedHost, context: EngineContext, said: list[str]
) -> None:
    host.ready("performance", CONFIG, context)
    (url,) = urls(context)
    (server,) = listeners(url)
    host.ended(CLEAN)
    os.kill(server, signal.SIGKILL)
    waited: list[str] = []
    of_accuracy = replace(context, report=lambda what, fraction: waited.append(what))
    host.ready("accuracy", CONFIG, of_accuracy)
    assert any("0 of 1 servers ready" in what for what in waited)
    assert urls(context) == (url,)
    assert listeners(url) not in ([], [server])
    facts = host.ended(CLEAN)
    assert "server-0 had ended (signal 9); it was started again." in facts["notes"]
    assert facts["num_starts"] == 1
    assert facts["processes"][0]["ended"] == 0  # none ended in this test
    assert "server-0 had ended (signal 9); it is started again" in said
    host.ready("compliance", CONFIG, context)
    assert not any("had ended" in note for note in host.ended(CLEAN)["notes"])


def test_a_server_that_hangs_is_started_again_and_told(
    host: ManagedHost, context: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ready("performance", replace(CONFIG, stop_timeout_s=0.2), context)
    (url,) = urls(context)
    (server,) = listeners(url)
    host.ended(CLEAN)
    monkeypatch.setattr(server_process, "_HEALTH_TIMEOUT_S", 0.5)
    monkeypatch.setattr(servers, "_HEALTH_AGAIN_S", 0.1)
    os.kill(server, signal.SIGSTOP)
    wait_until(lambda: is_stopped(server), within_s=30)
    host.ready("accuracy", replace(CONFIG, stop_timeout_s=0.2), context)
    assert listeners(url) not in ([], [server])
    told = "server-0 did not answer its health check, 3 times; it was started again."
    assert told in host.ended(CLEAN)["notes"]


def test_other_settings_start_new_servers(host: ManagedHost, context: EngineContext) -> None:
    host.ready("performance", CONFIG, context)
    before = urls(context)
    host.ended(CLEAN)
    host.ready("accuracy", replace(CONFIG, servers=2), context)
    assert len(urls(context)) == 2
    assert listeners(before[0]) == [] or before[0] in urls(context)
    facts = host.ended(CLEAN)
    assert (facts["num_starts"], facts["started_for_test"]) == (2, "accuracy")
    told = "New servers were started: the settings are not those of the performance test."
    assert told in facts["notes"]


@pytest.mark.parametrize("passed", [False, None])
def test_servers_that_may_keep_prompts_are_not_kept_themselves(
    host: ManagedHost, context: EngineContext, said: list[str], passed: bool | None
) -> None:
    host.ready("performance", CONFIG, context)
    (url,) = urls(context)
    servers_before = listeners(url)
    unsure = CHECK | {"passed": passed, "detail": "it does not say"}
    host.ended(CLEAN | {"preflight": [unsure]})
    host.ready("accuracy", CONFIG, context)
    assert listeners(urls(context)[0]) not in ([], servers_before)
    facts = host.ended(CLEAN)
    (told,) = [note for note in facts["notes"] if note.startswith("New servers")]
    assert "may reuse what it has kept of prompts (it does not say)" in told
    assert facts["num_starts"] == 2
    assert any("new servers are started" in line for line in said)


@pytest.mark.parametrize(
    ("preset", "extra", "passed", "is_kept"),
    [
        ("vllm", "", True, True),
        ("vllm", "", None, True),  # its own flag turned the cache off
        ("vllm", "--enable-prefix-caching", None, False),
        ("vllm", "--enable-prefix-caching", False, False),
        ("sglang", "", None, True),
        ("trtllm", "", None, True),
        ("trtllm", "--extra_llm_api_options mine.yaml", None, False),
        ("llama-cpp-python", "", False, False),
    ],
)
def test_a_cache_must_be_known_to_be_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    extra: str,
    passed: bool | None,
    is_kept: bool,
) -> None:
    """The plan only: these servers are not here."""
    for name, text in (
        ("nvidia-smi", "echo '0, GPU-0, 81559'\n"),
        ("vllm", ""),
        ("trtllm-serve", ""),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "model").mkdir()
    context = EngineContext(
        model=tmp_path / "model",
        eos_token_id=2,
        vocabulary_size=9,
        max_new_tokens=4,
        log_dir=tmp_path / "log",
    )
    config = ManagedConfig(preset=preset, extra_args=extra, quantization="none")
    planned = ManagedHost(cwd=tmp_path)
    planned.plan(config, context)
    why = planned.why_not_kept({"preflight": [CHECK | {"passed": passed}]})
    assert (why is None) == is_kept


def test_a_tests_process_hears_that_no_server_is_left(
    host: ManagedHost, context: EngineContext
) -> None:
    host.ready("performance", replace(CONFIG, restarts=0), context)
    assert context.kept is not None
    heard: list[str] = []
    kept = KeptServers(context.kept, on_lost=heard.append)
    (server,) = listeners(kept.endpoint.urls[0])
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: heard != [], within_s=30)
    kept.close()
    assert "server-0 ended (signal 9) while it served" in heard[0]
    facts = host.ended(CLEAN)
    assert facts["processes"][0]["is_lost"]
    host.ready("accuracy", replace(CONFIG, restarts=0), context)
    assert listeners(kept.endpoint.urls[0]) != []
    assert not host.ended(CLEAN)["processes"][0]["is_lost"]
