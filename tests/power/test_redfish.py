"""A BMC over HTTP on this machine: where its figure is, and every way it fails."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from paceline.errors import EnvironmentProblem, InputError
from paceline.power.redfish import redfish_meter

SECRETS = {"PACELINE_REDFISH_USER": "reader", "PACELINE_REDFISH_PASSWORD": "correct horse"}


def chassis(name: str, *kinds: str) -> dict[str, Any]:
    return {kind: {"@odata.id": f"/redfish/v1/Chassis/{name}/{kind}"} for kind in kinds}


class Bmc(http.server.BaseHTTPRequestHandler):
    """Serves `pages` to whoever has the password."""

    pages: ClassVar[dict[str, Any]] = {}
    redirect: ClassVar[str | None] = None

    def do_GET(self) -> None:
        token = base64.b64encode(b"reader:correct horse").decode()
        if self.redirect is not None:
            self.send_response(302)
            self.send_header("Location", self.redirect)
            self.end_headers()
            return
        if self.headers.get("Authorization") != f"Basic {token}":
            self.send_error(401)
            return
        page = self.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(page).encode())

    def log_message(self, *_: object) -> None:
        """Nothing on the test's screen."""


@pytest.fixture
def bmc() -> Iterator[str]:
    """The address of a BMC; its pages are the test's."""
    Bmc.pages, Bmc.redirect = {}, None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bmc)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def watts(url: str, secrets: dict[str, str] = SECRETS) -> float:
    (reading,) = redfish_meter(url, secrets, verify_tls=True).read()
    assert reading.scope == "node"
    return reading.power_w


POWER = "/redfish/v1/Chassis/Self/Power"
METRICS = "/redfish/v1/Chassis/Self/EnvironmentMetrics"


def serve_chassis(*names: str) -> None:
    members = [{"@odata.id": f"/redfish/v1/Chassis/{name}"} for name in names]
    Bmc.pages["/redfish/v1/Chassis"] = {"Members": members}


def test_the_one_chassis_that_tells_watts_is_found(bmc: str) -> None:
    serve_chassis("Backplane", "Self")
    Bmc.pages["/redfish/v1/Chassis/Backplane"] = {}
    Bmc.pages["/redfish/v1/Chassis/Self"] = chassis("Self", "Power")
    Bmc.pages[POWER] = {"PowerControl": [{"PowerConsumedWatts": 5312}]}
    assert watts(bmc) == 5312


def test_the_newer_resource_is_preferred(bmc: str) -> None:
    serve_chassis("Self")
    Bmc.pages["/redfish/v1/Chassis/Self"] = chassis("Self", "Power", "EnvironmentMetrics")
    Bmc.pages[METRICS] = {"PowerWatts": {"Reading": 5310.5}}
    assert watts(bmc) == 5310.5


def test_a_named_resource_is_read_alone(bmc: str) -> None:
    Bmc.pages["/redfish/v1/Chassis/1/Sensors/Total"] = {"Reading": 987, "ReadingUnits": "W"}
    assert watts(f"{bmc}/redfish/v1/Chassis/1/Sensors/Total") == 987


def test_several_chassis_are_named_and_none_is_guessed(bmc: str) -> None:
    serve_chassis("A", "B")
    for name in "AB":
        Bmc.pages[f"/redfish/v1/Chassis/{name}"] = chassis(name, "Power")
        Bmc.pages[f"/redfish/v1/Chassis/{name}/Power"] = {
            "PowerControl": [{"PowerConsumedWatts": 1}]
        }
    with pytest.raises(EnvironmentProblem, match=r"Chassis/A/Power, /redfish/v1/Chassis/B/Power"):
        watts(bmc)


def test_a_wrong_password_is_an_error_without_it(bmc: str) -> None:
    with pytest.raises(EnvironmentProblem, match="HTTP 401") as caught:
        watts(bmc, SECRETS | {"PACELINE_REDFISH_PASSWORD": "wrong horse"})
    assert "horse" not in str(caught.value)


def test_a_resource_without_watts_is_an_error(bmc: str) -> None:
    Bmc.pages[POWER] = {"PowerControl": [{"PowerConsumedWatts": None}]}
    with pytest.raises(EnvironmentProblem, match="tells watts"):
        watts(bmc + POWER)


def test_a_redirect_takes_the_password_nowhere(bmc: str) -> None:
    Bmc.redirect = "http://127.0.0.1:9/elsewhere"
    with pytest.raises(EnvironmentProblem, match="HTTP 302"):
        watts(bmc)


def test_nobody_there_is_an_error_that_says_so() -> None:
    with pytest.raises(EnvironmentProblem, match="does not answer"):
        watts("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://bmc.example", "in clear"),
        ("https://reader:secret@bmc.example", "holds a password"),
        ("bmc.example", "no address"),
    ],
)
def test_an_address_that_would_give_the_password_away_is_refused(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        watts(url)


def test_a_bmc_that_stops_answering_is_a_missed_reading(bmc: str) -> None:
    Bmc.pages[POWER] = {"PowerControl": [{"PowerConsumedWatts": 5312}]}
    meter = redfish_meter(bmc + POWER, SECRETS, verify_tls=True)
    del Bmc.pages[POWER]
    assert meter.read() == []
