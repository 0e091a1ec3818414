"""Clients that leave, stall, lie or ask too much; an engine that fails; a server told to stop."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Paceline, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from serving import Served, served

# Without a tokenizer a server is up sooner.
FAKE = ("--engine", "fake", "--benchmark", "llama2-70b-99.9")
SLOW = (*FAKE, "--set", "engine.fake.tokens_per_second=40")
BODY = {"prompt": [5, 6, 7], "max_tokens": 40, "temperature": 0, "return_token_ids": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One second an answer, one after the other; one in the engine, two may wait."""
    limits = ("--max-in-flight", "1", "--max-queue", "2", "--max-body-mib", "1")
    with served(*SLOW, *limits, "--client-timeout", "1") as server:
        yield server


def http(body: bytes, *, length: int | None = None, extra: str = "") -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + extra
    if "chunked" not in extra:
        head += f"Content-Length: {len(body) if length is None else length}\r\n"
    return head.encode() + b"\r\n" + body


def everything(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        received += connection.recv(65536)
    return received


def is_free(server: Served) -> bool:
    return server.metric("prompts_in_flight") + server.metric("prompts_queued") == 0


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(http(b"{", length=50 << 20))
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"1048576 bytes" in answer
    assert b"connection: close" in answer.lower()


def test_a_body_over_the_limit_that_does_not_say_so_is_refused(server: Served) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(http(b"", extra="Transfer-Encoding: chunked\r\n"))
        try:
            for _ in range(64):
                connection.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has closed: it does not read to the end
        connection.settimeout(10)
        try:
            answer = everything(connection)
        except ConnectionResetError:
            answer = b"HTTP/1.1 413 "
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert server.get("/health")[0] == 200
    assert server.metric('http_requests_total{path="/v1/completions",status="413"}') >= 1


def test_a_body_that_comes_too_slowly_is_given_up(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(http(b'{"prompt": ', length=100))
        assert everything(connection).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_within_its_body_is_counted(server: Served) -> None:
    left = 'http_requests_total{path="/v1/completions",status="499"}'
    before = server.metric(left) if left in server.get("/metrics")[1] else 0
    connection = server.connect()
    connection.sendall(http(b'{"prompt": ', length=100))
    time.sleep(0.1)
    connection.close()
    wait_until(
        lambda: left in server.get("/metrics")[1] and server.metric(left) == before + 1, within_s=10
    )


def test_what_is_not_http_is_a_400(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_client_that_vanishes_gives_its_place_back_at_once(
    server: Served, is_streaming: bool
) -> None:
    wait_until(lambda: is_free(server), within_s=10)
    before = server.metric('prompts_total{outcome="dropped"}')
    body = json.dumps(BODY | {"stream": is_streaming}).encode()
    connection = server.connect()
    connection.sendall(http(body))
    wait_until(lambda: server.metric("prompts_in_flight") == 1, within_s=10)
    if is_streaming:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    connection.close()
    wait_until(lambda: is_free(server), within_s=0.8)
    assert server.metric('prompts_total{outcome="dropped"}') == before + 1
    # Its answer reaches nobody else: another's is whole and its own.
    status, answer = server.post(BODY)
    assert status == 200
    assert len(answer["choices"][0]["token_ids"]) == 40


def test_more_than_fits_is_a_429_and_waiting_ones_are_served(server: Served) -> None:
    wait_until(lambda: is_free(server), within_s=10)
    answers: list[tuple[int, Any]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.post(BODY | {"max_tokens": 20})))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.metric("prompts_queued") == 2, within_s=10)
    status, refused = server.post(BODY)
    assert status == 429
    assert refused["headers"]["Retry-After"] == "1"
    assert refused["error"]["code"] == "queue_full"
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200, 200, 200]


def test_a_waiting_client_that_leaves_is_stepped_over(server: Served) -> None:
    wait_until(lambda: is_free(server), within_s=10)
    with server.connect() as first, server.connect() as third:
        first.sendall(http(json.dumps(BODY | {"max_tokens": 20}).encode()))
        wait_until(lambda: server.metric("prompts_in_flight") == 1, within_s=10)
        second = server.connect()
        second.sendall(http(json.dumps(BODY).encode()))
        wait_until(lambda: server.metric("prompts_queued") == 1, within_s=10)
        third.sendall(http(json.dumps(BODY | {"max_tokens": 2}).encode()))
        wait_until(lambda: server.metric("prompts_queued") == 2, within_s=10)
        second.close()
        wait_until(lambda: server.metric("prompts_queued") == 1, within_s=10)
        assert b'"completion_tokens":20' in until(first, b"}}")
        assert b'"completion_tokens":2' in until(third, b"}}")


def test_more_prompts_than_the_server_holds_are_a_400(server: Served) -> None:
    status, answer = server.post(BODY | {"prompt": [[5]] * 4})
    assert status == 400
    assert "4 prompts in one request; this server takes 3" in answer["error"]["message"]


def test_a_client_that_takes_nothing_is_let_go() -> None:
    with served(*FAKE, "--client-timeout", "1") as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        prompts = [[5 + i] * 1000 for i in range(2000)]
        body = BODY | {"prompt": prompts, "stream": True}
        slow.sendall(http(json.dumps(body).encode()))
        left = 'paceline_http_requests_total{path="/v1/completions",status="499"} 1'
        wait_until(lambda: left in server.get("/metrics")[1], within_s=30)


def test_an_engine_that_fails_is_a_500_and_ill_health_until_it_answers_again() -> None:
    with served(*FAKE, "--set", "engine.fake.fail_after=1") as server:
        assert server.post(BODY)[0] == 200
        status, answer = server.post(BODY)
        assert status == 500
        assert answer["error"]["type"] == "server_error"
        assert "The fake engine failed, as told to." in answer["error"]["message"]
        assert server.get("/health")[0] == 503
        assert server.post(BODY)[0] == 200
        assert server.get("/health")[0] == 200


def test_a_failure_within_a_stream_is_its_last_event() -> None:
    with served(*FAKE, "--set", "engine.fake.fail_after=1") as server:
        with server.connect() as connection:
            body = BODY | {"prompt": [[5], [6]], "stream": True}
            connection.sendall(http(json.dumps(body).encode(), extra="Connection: close\r\n"))
            answer = everything(connection).decode()
        assert answer.startswith("HTTP/1.1 200 ")
        events = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert "as told to" in json.loads(events[-2])["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_told_to_stop_ends_what_it_began(number: signal.Signals) -> None:
    with served(*SLOW) as server:
        with server.connect() as connection:
            connection.sendall(http(json.dumps(BODY | {"stream": True}).encode()))
            wait_until(lambda: server.metric("prompts_in_flight") == 1, within_s=10)
            server.process.send_signal(number)
            answer = everything(connection)
        assert b"data: [DONE]" in answer
        assert server.process.wait(10) == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()


@pytest.mark.parametrize(("grace", "num_signals"), [("30", 2), ("1", 1)])
def test_a_second_signal_or_the_end_of_grace_drops_what_is_left(
    grace: str, num_signals: int
) -> None:
    with served(*FAKE, "--set", "engine.fake.stall_after=1", "--grace", grace) as server:
        server.post(BODY)
        with server.connect() as connection:
            connection.sendall(http(json.dumps(BODY).encode()))
            wait_until(lambda: server.metric("prompts_in_flight") == 1, within_s=10)
            for _ in range(num_signals):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            assert server.process.wait(10) == 0
            if num_signals == 1:
                assert everything(connection).startswith(b"HTTP/1.1 503 ")


def test_a_port_in_use_is_told_before_the_engine_loads(paceline: Paceline) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = paceline("serve", "--port", port)
    assert outcome.code == 3
    assert f"Cannot listen on 127.0.0.1 port {port}" in outcome.err
    assert "--port N" in outcome.err


def test_a_server_without_a_tokenizer_takes_and_gives_ids_only() -> None:
    with served("--engine", "fake", "--benchmark", "llama2-70b-99.9") as server:
        assert server.model == "fake"
        status, answer = server.post(BODY | {"prompt": "Hi"})
        assert (status, "send token ids" in answer["error"]["message"]) == (400, True)
        status, answer = server.post(BODY | {"return_token_ids": False})
        assert (status, "set return_token_ids" in answer["error"]["message"]) == (400, True)
        status, answer = server.post(BODY)
        assert status == 200
        assert len(answer["choices"][0]["token_ids"]) == 40
