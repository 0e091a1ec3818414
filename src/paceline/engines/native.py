"""paceline's own engine, `paceline.native`, behind the Engine protocol.

Its settings are those of `paceline.native.EngineConfig`. With `data_parallel` the host's devices
each run a copy of the model; the copies pull requests from one pile as they have room, longest
prompts first, so that a faster device does more of the work.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from paceline.engines import (
    Completion,
    EngineContext,
    EngineState,
    Part,
    Request,
    Sink,
    StreamSink,
)
from paceline.engines.context_limit import refuse_longest, stored_limit
from paceline.engines.native_device import on_device, resolve_device
from paceline.engines.native_settings import NativeConfig
from paceline.errors import CheckpointError, EngineError, MissingExtraError

__all__ = ["NativeConfig", "NativeEngine"]

log = logging.getLogger(__name__)


class NativeEngine:
    """Copies of the native engine, each stepped by a thread of its own."""

    def __init__(self, config: NativeConfig, context: EngineContext) -> None:
        self._config = config
        self._context = context
        self._changed = threading.Condition()
        self._pile: deque[Request] = deque()
        self._sinks: dict[int, Sink] = {}
        self._closing = False
        self._copies: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._facts: dict[str, Any] = {}
        # Of each copy, what it is to forget before its next step.
        self._cancelled: list[set[int]] = [set() for _ in range(config.data_parallel)]
        # Copies, by id, whose thread steps or is about to.
        self._busy: set[int] = set()
        # Sinks that want each token, by identity: they are looked up once a token.
        self._stream_sinks: dict[int, StreamSink] = {}
        self._failure: EngineError | None = None

    def start(self) -> None:
        if importlib.util.find_spec("torch") is None:
            raise MissingExtraError(
                "The native engine needs PyTorch, which is not installed.",
                hint="pip install 'paceline[demo]' -c constraints.txt",
            )
        import torch

        device = resolve_device(self._config.device, torch)
        start_s = time.perf_counter()
        for copy in range(self._config.data_parallel):
            name = f"cuda:{copy}" if device == "cuda" and self._config.data_parallel > 1 else device
            self._copies.append(self._start_copy(name, torch))
            self._refuse_longest(self._copies[-1])
        self._facts = {
            "device": device,
            "device_name": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            **self._precision(),
            "load_s": round(time.perf_counter() - start_s, 3),
            "max_context_len": min(_longest(engine) for engine in self._copies),
            "vocabulary_size": self._copies[0].source.config.vocab_size,
        }
        # What there is by now stays to the end: collections, which happen while there is nothing
        # to do, need not walk it each time.
        gc.collect()
        gc.freeze()
        for copy, engine in enumerate(self._copies):
            name = f"native-engine-{copy}"
            arguments = (engine, self._cancelled[copy])
            thread = threading.Thread(target=self._work, args=arguments, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        failure = self._failure
        if failure is not None:
            for request in requests:
                sink.failed(request.request_id, failure)
            return
        if isinstance(sink, StreamSink):
            self._stream_sinks[id(sink)] = sink
        with self._changed:
            self._sinks |= {request.request_id: sink for request in requests}
            ordered = sorted(requests, key=lambda request: -len(request.token_ids))
            self._pile.extend(ordered)
            self._changed.notify_all()

    def cancel(self, request_ids: Sequence[int]) -> None:
        with self._changed:
            gone = {i for i in request_ids if self._sinks.pop(i, None) is not None}
            self._pile = deque(one for one in self._pile if one.request_id not in gone)
            for cancelled in self._cancelled:
                cancelled |= gone
            self._changed.notify_all()

    def drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._sinks)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for engine in self._copies:
            engine.close()
        self._copies = []
        gc.unfreeze()

    def begin_counting(self) -> None:
        with self._changed:
            # What was cancelled leaves with the step that is under way, whose tokens are counted
            # after its sequences are gone: only the thread that steps knows when it is done.
            self._changed.wait_for(lambda: self._failure or not (self._busy or self._pile))
            for engine in self._copies:
                engine.begin_counting()

    def describe(self) -> dict[str, Any]:
        return {**self._facts, "copies": [engine.stats() for engine in self._copies]}

    def state(self) -> EngineState:
        """Sums over the copies, and each of them; empty when the engine is closed."""
        copies = self._copies
        if not copies:
            return EngineState()
        pages = [engine.pages for engine in copies]
        return EngineState(
            live_sequences=sum(engine.live for engine in copies),
            waiting_sequences=sum(engine.waiting for engine in copies) + len(self._pile),
            kv_used_fraction=round(sum(u for u, _ in pages) / sum(n for _, n in pages), 4),
            preemptions=sum(engine.scheduler.num_preemptions for engine in copies),
            kv_slots=sum(n for _, n in pages) * self._config.page_len,
            parts=tuple(
                Part(name=f"copy {i}", live_sequences=one.live, tokens=one.num_sampled_tokens)
                for i, one in enumerate(copies)
            ),
        )

    def _refuse_longest(self, engine: Any) -> None:
        """Raise InputError when the run has a prompt that a copy, now loaded, cannot hold."""
        context = self._context
        if not context.longest_prompt_len:
            return
        limits = (
            stored_limit(engine.resolved.max_context_len),
            self._config.cache_limit(engine.scheduler.allocator.num_pages),
        )
        for limit in limits:
            if limit is not None:
                refuse_longest(limit, context.longest_prompt_len, context.max_new_tokens)

    def _precision(self) -> dict[str, Any]:
        """What the weights are stored as, how products run, and in which type."""
        stats, resolved = self._copies[0].stats(), self._copies[0].resolved
        stated = {name: stats[name] for name in ("checkpoint_format", "quantization", "kv_dtype")}
        return {**stated, "dtype": str(resolved.dtype).removeprefix("torch.")}

    def _start_copy(self, device: str, torch: Any) -> Any:
        from paceline import native

        config, model = self._config, self._context.model
        if model is None:
            raise CheckpointError("The native engine needs a model.", hint="--model PATH")
        dtype = config.dtype
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        try:
            engine = native.Engine(
                native.EngineConfig(
                    weights=str(model),
                    device=device,
                    dtype=dtype,
                    quantization=config.quantization,
                    kv_dtype=config.kv_dtype,
                    max_step_tokens=config.max_step_tokens,
                    max_live_sequences=config.max_live_sequences,
                    page_len=config.page_len,
                    kv_memory_fraction=config.kv_memory_fraction,
                    kv_pages=config.kv_pages or None,
                    tensor_parallel=config.tensor_parallel,
                    eos_token_id=self._context.eos_token_id,
                    use_cuda_graphs=config.use_cuda_graphs,
                )
            )
            with on_device(device, torch):
                engine.start(self._context.report)
        except native.NativeError as error:
            raise CheckpointError(error.message, hint=error.hint) from error
        return engine

    def _work(self, engine: Any, cancelled: set[int]) -> None:
        """Step one copy until the engine closes; whatever ends it is told to every request."""
        import torch

        from paceline import native

        try:
            with on_device(str(engine.resolved.device), torch):
                while self._await_work(engine):
                    with native.no_collections():
                        self._run_until_idle(engine, cancelled)
        except Exception as error:
            log.exception("the native engine failed")
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            self._fail_all(EngineError(message, hint=getattr(error, "hint", None)))

    def _await_work(self, engine: Any) -> bool:
        """Sleep until there are requests, and give the copy some; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pile or self._closing)
            if self._closing:
                return False
            self._busy.add(id(engine))
        self._top_up(engine)
        return True

    def _run_until_idle(self, engine: Any, cancelled: set[int]) -> None:
        """Step, with what comes meanwhile; tokens and results leave as they come."""
        while not engine.is_idle:
            self._forget(engine, cancelled)
            num_steps = len(engine.records)
            results = engine.step()
            for request_id, token_id in engine.first_tokens:
                sink = self._sinks.get(request_id)
                if sink is not None:
                    sink.first_token(request_id, token_id)
            if self._stream_sinks:
                self._stream(engine)
            if results:
                self._deliver(results)
            if len(engine.records) > num_steps:
                self._report_step(engine.records[-1].num_kept)
            self._top_up(engine)
        with self._changed:
            cancelled.clear()
            self._busy.discard(id(engine))
            self._changed.notify_all()

    def _forget(self, engine: Any, cancelled: set[int]) -> None:
        """Take out of the copy what was cancelled; what has yet to reach it stays noted."""
        from paceline import native

        if cancelled:
            with self._changed:
                cancelled -= native.cancel(engine.scheduler, cancelled)

    def _stream(self, engine: Any) -> None:
        """Hand the last step's tokens to the sinks that want each."""
        pairs, engine.scheduler.later_tokens = engine.scheduler.later_tokens, []
        own: dict[int, list[tuple[int, int]]] = {name: [] for name in self._stream_sinks}
        for pair in pairs:
            name = id(self._sinks.get(pair[0]))
            if name in own:
                own[name].append(pair)
        for name, sink in list(self._stream_sinks.items()):
            if own.get(name):
                sink.tokens(own[name])

    def _top_up(self, engine: Any) -> None:
        """Keep a copy in work: a full cache, and a reserve of a quarter more."""
        from paceline import native

        if not self._pile:
            return
        limit = self._config.max_live_sequences * 5 // 4
        with self._changed:
            room = limit - engine.live - engine.waiting
            if self._config.data_parallel == 1:
                room = len(self._pile)
            taken = [self._pile.popleft() for _ in range(min(room, len(self._pile)))]
        engine.add(
            native.GenRequest(
                request_id=request.request_id,
                token_ids=request.token_ids.tolist(),
                max_new_tokens=request.max_new_tokens,
                min_new_tokens=request.min_new_tokens,
            )
            for request in taken
        )

    def _deliver(self, results: Sequence[Any]) -> None:
        """The answers of a step, all of a sink's at once: what it does about them, it does once."""
        answers: dict[int, tuple[Sink, list[Completion]]] = {}
        with self._changed:
            for result in results:
                sink = self._sinks.pop(result.request_id, None)
                if sink is None:  # cancelled while its last step ran
                    continue
                ids = np.asarray(result.token_ids, dtype=np.int32)
                one = Completion(result.request_id, ids, result.finish_reason)
                answers.setdefault(id(sink), (sink, []))[1].append(one)
        for sink, completions in answers.values():
            sink.done_all(completions)
        with self._changed:
            if not self._sinks:
                self._changed.notify_all()

    def _report_step(self, num_tokens: int) -> None:
        with self._changed:
            sink = next(iter(self._sinks.values()), None)
        if sink is not None:
            sink.progress(num_tokens)

    def _fail_all(self, error: EngineError) -> None:
        with self._changed:
            self._failure = error
            sinks, self._sinks = self._sinks, {}
            self._pile.clear()
            self._changed.notify_all()
        for request_id, sink in sinks.items():
            sink.failed(request_id, error)


def _longest(engine: Any) -> int:
    """The longest request that the copy can hold: its context, or all of its cache."""
    cache_len = engine.scheduler.allocator.num_pages * engine.resolved.page_len
    return int(min(engine.resolved.max_context_len, cache_len))
