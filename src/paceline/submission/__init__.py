"""Run directories in, a checked submission out; no engine, no LoadGen."""

__all__: list[str] = []
