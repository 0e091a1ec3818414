"""paceline's engines behind the OpenAI API: `paceline serve`."""

from __future__ import annotations

__all__: list[str] = []
