"""The embedded model behind a server that is not ours: llama-cpp-python's, on a CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Paceline

from paceline.config import embedded_model
from paceline.mlperf.tokenizer import load_tokenizer

# A Python that has llama_cpp, when this one has not: it builds llama.cpp from source.
PYTHON = os.environ.get("PACELINE_TEST_LLAMA_CPP_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    there = [PYTHON, "-c", "import llama_cpp.server.app"]
    if subprocess.run(there, capture_output=True, check=False).returncode:
        pytest.skip("llama-cpp-python[server] is not installed (PACELINE_TEST_LLAMA_CPP_PYTHON)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "llama_cpp.server", "--model", str(embedded_model())]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "2048", "--n_threads", "2"]
    log = tmp_path_factory.mktemp("llama") / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield wait_for(f"http://127.0.0.1:{port}", server, log)
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5):
                return url
        except OSError:
            time.sleep(0.2)
    pytest.fail(log.read_text()[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["auto", "true"])
def test_real_answers_come_through_text_and_are_not_called_exact(
    paceline: Paceline, tmp_path: Path, url: str, stream: str
) -> None:
    outcome = paceline(
        *("run", "--engine", "endpoint", "--mode", "accuracy", "--out", "run"),
        *("--set", "run.num_samples=6", "--set", f"engine.endpoint.urls={url}"),
        *("--set", f"engine.endpoint.stream={stream}"),
        timeout_s=550,
    )
    assert outcome.code in (0, 1), outcome
    assert "not exact" in outcome.out
    engine = json.loads((tmp_path / "run/manifest.json").read_text())["tests"]["accuracy"]["engine"]
    server = engine["servers"][0]
    assert (server["kind"], server["dialect"]) == ("llama-cpp-python", "text-only")
    assert (server["answered"], engine["retries"]) == (6, {})
    assert server["most_in_flight"] == (1 if stream == "true" else 2)
    assert engine["exact_token_ids"] is False
    log = json.loads((tmp_path / "run/accuracy/mlperf_log_accuracy.json").read_text())
    ids = [list(memoryview(bytes.fromhex(entry["data"])).cast("i")) for entry in log]
    words = " ".join(load_tokenizer(embedded_model()).decode_batch(ids)).lower().split()
    assert len(words) > 60
    assert {"the", "a", "of", "to", "is"} & set(words)
