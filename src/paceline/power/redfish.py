"""The node's power from its BMC by Redfish (DMTF DSP0266), read with plain HTTP.

The address is the resource that has the figure, or the BMC alone, whose chassis are then looked
through; a figure in more than one of them is an error that names them. User and password come from
PACELINE_REDFISH_USER and PACELINE_REDFISH_PASSWORD, go to that host only, by https only (http to
this machine itself excepted), and no redirect is followed.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from paceline.errors import EnvironmentProblem, InputError
from paceline.power.readings import NODE, Reading

__all__ = ["RedfishMeter", "redfish_meter"]

_EVERY_S = 5.0
_TIMEOUT_S = 10.0
_USER, _PASSWORD = "PACELINE_REDFISH_USER", "PACELINE_REDFISH_PASSWORD"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ROOT = "/redfish/v1"
_BYTES_MAX = 1 << 22


class RedfishMeter:
    """One resource of a BMC that has watts."""

    name = "redfish"
    every_s = _EVERY_S

    def __init__(self, bmc: _Bmc, path: str) -> None:
        self._bmc = bmc
        self._path = path

    def read(self) -> list[Reading]:
        try:
            watts = _watts(self._bmc.get(self._path))
        except _NoAnswerError:
            return []
        if watts is None:
            return []
        return [Reading(device="node", scope=NODE, source=self.name, power_w=watts)]

    def close(self) -> None:
        """Each reading is a connection of its own."""


class _NoAnswerError(Exception):
    """What the BMC said instead of a figure."""


class _Bmc:
    """The host, and how it is asked."""

    def __init__(self, url: str, environment: Mapping[str, str], *, verify_tls: bool) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"power.redfish is '{url}', which is no address.",
                hint="--set power.redfish=https://BMC   (user and password are not part of it)",
            )
        if parts.username is not None or parts.password is not None:
            raise InputError(
                "power.redfish holds a password: it would be written into the run directory.",
                hint=f"leave it out, and set {_USER} and {_PASSWORD}",
            )
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise InputError(
                f"power.redfish is '{url}': the password would cross the network in clear.",
                hint="https://...; --set power.redfish_verify_tls=false where its certificate "
                "is its own",
            )
        self.path = parts.path.rstrip("/")
        self._address = (parts.hostname, parts.port)
        self._is_plain = parts.scheme == "http"
        self._tls = ssl.create_default_context()
        if not verify_tls:
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        self._headers = {"Accept": "application/json"}
        user, password = environment.get(_USER), environment.get(_PASSWORD)
        if user is not None and password is not None:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"

    def get(self, path: str) -> Any:
        host, port = self._address
        connection: http.client.HTTPConnection
        if self._is_plain:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(
                host, port, timeout=_TIMEOUT_S, context=self._tls
            )
        try:
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            body = answer.read(_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise _NoAnswerError(f"{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise _NoAnswerError(f"{path}: HTTP {answer.status} {answer.reason}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise _NoAnswerError(f"{path}: not JSON") from error


def redfish_meter(url: str, environment: Mapping[str, str], *, verify_tls: bool) -> RedfishMeter:
    """The meter of an address that somebody named, so that one without a figure is an error."""
    bmc = _Bmc(url, environment, verify_tls=verify_tls)
    try:
        named = bmc.path not in ("", "/redfish", _ROOT)
        paths = [bmc.path] if named else _paths_with_watts(bmc)
        if named and _watts(bmc.get(bmc.path)) is None:
            paths = []
    except _NoAnswerError as error:
        raise EnvironmentProblem(
            f"The BMC at power.redfish does not answer: {error}.",
            hint=f"check the address, {_USER} and {_PASSWORD}; a certificate of its own needs "
            "--set power.redfish_verify_tls=false",
        ) from error
    if len(paths) == 1:
        return RedfishMeter(bmc, paths[0])
    if not paths:
        raise EnvironmentProblem(
            f"Nothing at {url} tells watts.",
            hint="name the resource: https://BMC/redfish/v1/Chassis/NAME/Power",
        )
    raise EnvironmentProblem(
        f"Several chassis of {url} tell watts: {', '.join(paths)}.",
        hint=f"name one: --set power.redfish=https://BMC{paths[0]}",
    )


def _paths_with_watts(bmc: _Bmc) -> list[str]:
    """Of each chassis, the resource that has its power."""
    listed = bmc.get(f"{_ROOT}/Chassis")
    found = []
    for member in listed.get("Members", []) if isinstance(listed, dict) else []:
        chassis = bmc.get(str(member["@odata.id"]))
        for name in ("EnvironmentMetrics", "Power"):
            link = chassis.get(name) if isinstance(chassis, dict) else None
            path = link.get("@odata.id") if isinstance(link, dict) else None
            if isinstance(path, str) and _watts(bmc.get(path)) is not None:
                found.append(path)
                break
    return found


def _watts(resource: Any) -> float | None:
    """The figure of a Power, EnvironmentMetrics or Sensor resource."""
    if not isinstance(resource, dict):
        return None
    controls = resource.get("PowerControl")
    if isinstance(controls, list) and controls and isinstance(controls[0], dict):
        return _number(controls[0].get("PowerConsumedWatts"))
    metrics = resource.get("PowerWatts")
    if isinstance(metrics, dict):
        return _number(metrics.get("Reading"))
    return _number(resource.get("Reading")) if resource.get("ReadingUnits") == "W" else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None
