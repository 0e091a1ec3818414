"""`paceline serve` as a process of its own, for the tests that talk to it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Served:
    """A server that is up."""

    def __init__(self, process: subprocess.Popen[str], port: int, model: str) -> None:
        self.process = process
        self.port = port
        self.model = model
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, body: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, Any]:
        """The status and the JSON of an answer; "headers" are added to it under that name."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read()) | {"headers": answer.headers}
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()) | {"headers": error.headers}

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def metric(self, name: str) -> float:
        _, text = self.get("/metrics")
        found = re.search(rf"^{re.escape('paceline_' + name)} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"{name} is not in\n{text}"
        return float(found.group(1))


@contextmanager
def served(*arguments: str, **options: Any) -> Iterator[Served]:
    """Start a server, wait until it says its address, and end it in order."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paceline", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or []))
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (.+) at http://127\.0\.0\.1:(\d+)/v1\n", line)
        if found is None:
            process.wait(30)
            reader.join()
            raise AssertionError(f"no server: {line}{''.join(errors)}")
        yield Served(process, int(found.group(2)), found.group(1))
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    # An exception of the server's would be told here, whatever the client saw.
    assert not any("Traceback" in line or "Exception" in line for line in errors), "".join(errors)
