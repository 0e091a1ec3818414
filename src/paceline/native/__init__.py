"""An offline engine that does one thing: greedy decoding of a Llama model, fast.

    engine = Engine(EngineConfig(weights="..."))
    engine.start()
    engine.add([GenRequest(request_id=0, token_ids=[1, 2, 3], max_new_tokens=8)])
    engine.run_until_idle(print)

Imports nothing else of paceline and can be lifted out of it.
"""

from paceline.native.cancel import cancel
from paceline.native.errors import NativeError
from paceline.native.generation import GenRequest, GenResult
from paceline.native.runner import Engine, EngineConfig, no_collections

__all__ = [
    "Engine",
    "EngineConfig",
    "GenRequest",
    "GenResult",
    "NativeError",
    "cancel",
    "no_collections",
]
