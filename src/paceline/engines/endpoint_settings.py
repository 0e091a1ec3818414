"""Settings of the endpoint engine; read by the command line, so nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from paceline.engines.endpoint_dialect import SERVERS
from paceline.engines.knobs import ANSWERS, Knob, powers
from paceline.errors import InputError

__all__ = ["EndpointConfig"]

_CHOICES = {
    "server": ("auto", *SERVERS),
    "stream": ("auto", "true", "false"),
    "preflight": ("strict", "warn"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """Settings of the endpoint engine. Times are in seconds."""

    urls: tuple[str, ...] = field(default=(), metadata=ANSWERS)
    """Servers, as http://host:8000; a list, or separated by commas."""

    model: str = field(default="auto", metadata=ANSWERS)
    """Name under which the model is served; auto: the only one that is."""

    server: str = field(default="auto", metadata=ANSWERS)
    """Kind of server: vllm, sglang, trtllm, llamacpp, llama-cpp-python, paceline, openai; auto: by its /v1/models."""  # noqa: E501

    concurrency: int = 256
    """Most requests in flight at each server; a quarter more than it batches keeps it full."""

    stream: str = "auto"
    """true, false, or auto: stream answers where the scenario wants the first token at once."""

    dtype: str = field(default="unknown", metadata=ANSWERS)
    """Type of the weights as the servers were started, as fp8; goes into measurements.json."""

    api_key_env: str = ""
    """Name of the environment variable that holds the API key; the key itself is never stored."""

    verify_tls: bool = True
    """Check the servers' certificates."""

    ca_bundle: str = ""
    """PEM file of certificates to trust instead of the system's."""

    connect_timeout_s: float = 10.0
    """Longest wait for a connection."""

    idle_timeout_s: float = 600.0
    """Longest silence of a server that was asked; without streaming, the longest answer."""

    total_timeout_s: float = 1800.0
    """Longest time of one try."""

    retries: int = 5
    """How often a request is sent again that met a busy or failing server."""

    backoff_s: float = 0.5
    """Wait before the first retry; doubled each time, up to 30 s, and varied by a half."""

    dead_timeout_s: float = 300.0
    """How long to wait for a server to come back when none is left."""

    start_timeout_s: float = 60.0
    """How long to wait for the servers at the start."""

    preflight: str = "strict"
    """strict: a check that fails stops the run; warn: it is put on record, and closed division refuses the result."""  # noqa: E501

    @property
    def in_flight(self) -> int:
        """Requests that keep the servers full."""
        return self.concurrency * len(self.urls)

    def knobs(self, num_gpus: int) -> tuple[Knob, ...]:
        """What may make it faster on this side: the requests in flight."""
        del num_gpus
        return (Knob("concurrency", powers(1, 4096)),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "urls", tuple(url.strip().rstrip("/") for url in self.urls))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"engine.endpoint.{name} is '{getattr(self, name)}'.",
                    hint=f"one of {', '.join(choices)}",
                )
        if not self.urls:
            raise InputError(
                "engine.endpoint.urls is empty.",
                hint="--set engine.endpoint.urls=http://HOST:8000",
            )
        _check_urls(self.urls)
        above_zero = (self.backoff_s, self.connect_timeout_s, self.idle_timeout_s)
        if (
            min(*above_zero, self.total_timeout_s) <= 0
            or self.concurrency < 1
            or min(self.retries, self.dead_timeout_s, self.start_timeout_s) < 0
        ):
            raise InputError(
                "engine.endpoint: a value is too small.",
                hint="concurrency at least 1; backoff_s, connect_, idle_ and total_timeout_s above "
                "0; retries, dead_ and start_timeout_s 0 or more",
            )


def _check_urls(urls: Sequence[str]) -> None:
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"engine.endpoint.urls: '{url}' is no URL of a server.",
                hint="as http://host:8000 or https://host",
            )
        if parts.username or parts.password or parts.query:
            raise InputError(
                f"engine.endpoint.urls: the URL of {parts.hostname} holds a login or a query, "
                "which would end up in the manifest.",
                hint="put the key into a variable and name it: engine.endpoint.api_key_env",
            )
        if parts.path.endswith("/v1"):
            raise InputError(
                f"engine.endpoint.urls: '{url}' ends with /v1.", hint=f"use {url[: -len('/v1')]}"
            )
    if len(set(urls)) < len(urls):
        raise InputError("engine.endpoint.urls names a server twice.", hint="each one once")
