"""An engine of known costs: continuous batching with prompts in chunks, which sleeps for its steps.

A step takes `step_s`, `token_s` for each token that it makes, `context_s` for each token before one
that a running sequence makes, and `prompt_s` for each prompt token. It has room for `budget`
tokens, of which the running sequences come first, and no more than `max_live` sequences are under
way. Tokens are told when their step ends. With `clock` 0 nothing sleeps and `seconds` alone is
counted: how long a query takes by definition.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.engines import Completion, EngineState, Request, Sink

__all__ = ["Costs", "SteppingEngine"]


@dataclass(frozen=True)
class Costs:
    """Seconds of a step, and what limits it."""

    step_s: float
    token_s: float
    prompt_s: float
    budget: int = 2048
    max_live: int = 1024
    context_s: float = 0.0


@dataclass(eq=False)
class _Sequence:
    request: Request
    sink: Sink
    output_len: int
    prompt_left: int
    made: int = 0


class SteppingEngine:
    """See the module; `output_lens` by prompt length and first id, as an answer depends on it."""

    def __init__(self, costs: Costs, output_lens: dict[bytes, int], *, clock: float = 1.0) -> None:
        self._costs, self._output_lens, self._clock = costs, output_lens, clock
        self._changed = threading.Condition()
        self._waiting: deque[_Sequence] = deque()
        self._live: list[_Sequence] = []
        self._closing = False
        # Most that were in flight at once.
        self.most = 0
        self.seconds = 0.0
        # By how much steps ended later than they take.
        self.late_s = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        with self._changed:
            for one in sorted(requests, key=lambda request: -len(request.token_ids)):
                length = min(self._output_lens[one.token_ids.tobytes()], one.max_new_tokens)
                self._waiting.append(_Sequence(one, sink, length, len(one.token_ids)))
            self.most = max(self.most, len(self._waiting) + len(self._live))
            self._changed.notify_all()

    def cancel(self, request_ids: Sequence[int]) -> None:
        gone = set(request_ids)
        with self._changed:
            self._waiting = deque(s for s in self._waiting if s.request.request_id not in gone)
            self._live = [s for s in self._live if s.request.request_id not in gone]

    def state(self) -> EngineState:
        return EngineState(live_sequences=len(self._live), waiting_sequences=len(self._waiting))

    def drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._live and not self._waiting)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def describe(self) -> dict[str, object]:
        return {"device": "none"}

    def _work(self) -> None:
        due_s = 0.0
        while True:
            with self._changed:
                idle = not self._live and not self._waiting
                self._changed.wait_for(lambda: self._live or self._waiting or self._closing)
                if self._closing:
                    return
                planned, took_s = self._plan()
            self.seconds += took_s
            # By the clock of the steps, so that what a busy machine loses once is made up for.
            due_s = (time.perf_counter() if idle else due_s) + took_s * self._clock
            if self._clock:
                time.sleep(max(0.0, due_s - time.perf_counter()))
                self.late_s += time.perf_counter() - due_s
            self._tell(planned)

    def _plan(self) -> tuple[list[_Sequence], float]:
        """The sequences that make a token in the next step, and how long it takes."""
        costs = self._costs
        making = [one for one in self._live if not one.prompt_left]
        room, prompts = costs.budget - len(making), 0
        context = sum(len(one.request.token_ids) + one.made for one in making)
        while self._waiting and len(self._live) < costs.max_live and room > prompts:
            self._live.append(self._waiting.popleft())
            prompts += self._live[-1].prompt_left
        prompts = 0
        for one in self._live:
            if one.prompt_left and room > 0:
                taken = min(one.prompt_left, room)
                one.prompt_left -= taken
                room -= taken
                prompts += taken
                if not one.prompt_left:
                    making.append(one)
        tokens_s = costs.token_s * len(making) + costs.context_s * context
        return making, costs.step_s + tokens_s + costs.prompt_s * prompts

    def _tell(self, planned: Sequence[_Sequence]) -> None:
        with self._changed:
            alive = set(map(id, self._live))
            made = [one for one in planned if id(one) in alive]
            ended = []
            for one in made:
                one.made += 1
                if one.made == one.output_len:
                    ended.append(one)
            gone = set(map(id, ended))
            self._live = [one for one in self._live if id(one) not in gone]
        for one in made:
            if one.made == 1:
                one.sink.first_token(one.request.request_id, 5)
        for one in ended:
            ids = np.full(one.output_len, 5, np.int32)
            one.sink.done(Completion(one.request.request_id, ids, "stop"))
        if made:
            made[0].sink.progress(len(made))
        with self._changed:
            self._changed.notify_all()
