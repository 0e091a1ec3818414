"""The SUT of the Offline scenario: one query with every sample, answered as they finish."""

from __future__ import annotations

from paceline.harness.sut import EngineSut

__all__ = ["OfflineSut"]


class OfflineSut(EngineSut):
    """Hands all samples to the engine at once and passes their answers on."""

    def first_token(self, request_id: int, token_id: int) -> None:
        del request_id, token_id  # Offline has no limit on the first token
