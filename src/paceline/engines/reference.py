"""Hugging Face transformers, batch by batch: the definition of right.

A quantised checkpoint runs as the arithmetic that its format means, on dequantised numbers
(`reference_quantized`); its format is part of what the engine says of itself.

Every other engine is held to what this one gives. It is plain on purpose: prompts sorted by
length, cut into batches, padded on the left, decoded greedily by `generate`. Padding after a
sequence's EOS is cut, so EOS appears once and counts once.

Batches are formed from the prompts longest first, in a fixed order that depends on the prompts
alone, and a batch is answered as a whole. A resumed run therefore forms the batches that were
left, each with the same members, and gives the same tokens.

First tokens are reported when the batch's first step has made them. Requests that come one at a
time, as in the Server scenario, are batches of one: right, and no measure of speed.

Precision, device and batch size are the user's choice and part of the manifest; nothing here
falls back to another.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paceline.engines import Completion, EngineContext, Request, Sink
from paceline.engines.reference_settings import ReferenceConfig
from paceline.errors import (
    CheckpointError,
    EngineError,
    MissingExtraError,
    PacelineError,
)

__all__ = ["ReferenceConfig", "ReferenceEngine", "batches", "load_model"]

log = logging.getLogger(__name__)


class ReferenceEngine:
    """Greedy decoding with transformers; one worker thread owns the model."""

    def __init__(self, config: ReferenceConfig, context: EngineContext) -> None:
        self._config = config
        self._context = context
        self._queue: queue.SimpleQueue[tuple[Sequence[Request], Sink] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reference-engine", daemon=True)
        self._idle = threading.Condition()
        self._pending = 0
        self._model: Any = None
        self._facts: dict[str, Any] = {}

    def start(self) -> None:
        torch = _import_torch()
        if self._config.num_threads:
            torch.set_num_threads(self._config.num_threads)
        device = _resolve_device(self._config.device, torch)
        self._context.report("loading the model", None)
        start_s = time.perf_counter()
        self._model, stored = load_model(self._context.model, self._config.dtype, device, torch)
        self._facts = {
            **stored,
            "device": device,
            "device_name": torch.cuda.get_device_name() if device != "cpu" else "cpu",
            "num_gpus": torch.cuda.device_count() if device != "cpu" else 0,
            "dtype": self._config.dtype,
            "load_s": round(time.perf_counter() - start_s, 3),
            "num_threads": torch.get_num_threads(),
        }
        self._thread.start()

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        with self._idle:
            self._pending += 1
        self._queue.put((requests, sink))

    def drain(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._pending == 0)

    def close(self) -> None:
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._model = None

    def describe(self) -> dict[str, Any]:
        return dict(self._facts)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            requests, sink = item
            for batch in batches(requests, self._config):
                try:
                    completions = self._generate(batch, sink)
                except Exception as error:  # whatever torch raises ends the run, by name
                    log.exception("a batch of %d prompts failed", len(batch))
                    problem = _explain(error, self._config)
                    for request in batch:
                        sink.failed(request.request_id, problem)
                    continue
                sink.done_all(completions)
            with self._idle:
                self._pending -= 1
                self._idle.notify_all()

    def _generate(self, batch: Sequence[Request], sink: Sink) -> list[Completion]:
        """Decode one batch. All of its requests have the same limits."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        from paceline.engines.reference_quantized import new_cache

        eos = self._context.eos_token_id
        padded_len = max(len(request.token_ids) for request in batch)
        ids = np.full((len(batch), padded_len), eos, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, padded_len - len(request.token_ids) :] = request.token_ids
            mask[row, padded_len - len(request.token_ids) :] = 1
        settings = GenerationConfig(
            max_new_tokens=batch[0].max_new_tokens,
            min_new_tokens=batch[0].min_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=eos,
            pad_token_id=eos,
        )

        unfinished = np.ones(len(batch), dtype=bool)

        def count_step(input_ids: Any, scores: Any, **_: Any) -> Any:
            del scores
            if input_ids.shape[1] == padded_len + 1:
                for request, token_id in zip(batch, input_ids[:, -1].tolist(), strict=True):
                    sink.first_token(request.request_id, token_id)
            # What follows an EOS is padding: no token of an answer.
            sink.progress(int(unfinished.sum()))
            unfinished[(input_ids[:, -1] == eos).cpu().numpy()] = False
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        with torch.inference_mode():
            output = self._model.generate(
                torch.from_numpy(ids).to(self._model.device),
                attention_mask=torch.from_numpy(mask).to(self._model.device),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([count_step]),
                **new_cache(self._model),
            )
        rows = output[:, padded_len:].cpu().numpy()
        return [_completion(request, row, eos) for request, row in zip(batch, rows, strict=True)]


def batches(requests: Sequence[Request], config: ReferenceConfig) -> list[list[Request]]:
    """Cut requests into batches: equal limits, longest prompts first, ties by their ids.

    A batch is full at `batch_size` prompts, when one more would pad it past `max_padded_tokens`,
    and when the next prompt is less than half as long as the first and would be mostly padding.
    Each depends on the batch's first and longest prompt and on how short the next ones are, so
    taking whole batches away leaves the others as they were.
    """
    ordered = sorted(
        requests,
        key=lambda r: (*_limits(r), -len(r.token_ids), r.token_ids.tobytes(), r.request_id),
    )
    groups: list[list[Request]] = []
    for request in ordered:
        group = groups[-1] if groups else None
        if group is None or _is_full(group, request, config):
            groups.append([request])
        else:
            group.append(request)
    return groups


def _is_full(group: Sequence[Request], request: Request, config: ReferenceConfig) -> bool:
    longest, one_more = len(group[0].token_ids), len(group) + 1
    return (
        one_more > config.batch_size
        or one_more * longest > config.max_padded_tokens
        or 2 * len(request.token_ids) < longest
        or _limits(group[0]) != _limits(request)
    )


def _limits(request: Request) -> tuple[int, int]:
    return request.max_new_tokens, request.min_new_tokens


def _completion(request: Request, row: Any, eos_token_id: int) -> Completion:
    """Cut a row of ids after its first EOS; the rest of the row is padding."""
    ends = np.flatnonzero(row == eos_token_id)
    kept = row[: ends[0] + 1] if len(ends) else row
    return Completion(
        request.request_id,
        np.ascontiguousarray(kept, dtype=np.int32),
        "stop" if len(ends) else "length",
    )


def _import_torch() -> Any:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"The reference engine needs {package}, which is not installed.",
                hint="pip install 'paceline[demo]' -c constraints.txt",
            )
    import torch

    return torch


def _resolve_device(device: str, torch: Any) -> str:
    """The torch device: "cpu" or "cuda" (ROCm builds of PyTorch call their devices cuda too)."""
    has_gpu = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_gpu else "cpu"
    if device == "cpu":
        return device
    built_for = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    if not has_gpu or built_for != device:
        raise EngineError(
            f"engine.reference.device is '{device}', but this PyTorch ({torch.__version__}) is "
            f"built for {built_for} and sees {torch.cuda.device_count()} GPUs.",
            hint=f"install a {device} build of PyTorch, or --set engine.reference.device=cpu",
        )
    return "cuda"


def load_model(
    path: Path | None, dtype: str, device: str, torch: Any
) -> tuple[Any, dict[str, Any]]:
    """A Hugging Face directory or a GGUF file, and its format. Raises CheckpointError."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from paceline.engines.reference_quantized import load_quantized, stored_format_of

    if path is None:
        raise CheckpointError("The reference engine needs a model.", hint="--model PATH")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder, options = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    if device != "cpu":
        # One GPU takes the whole model; several take its layers in turn.
        options["device_map"] = "auto" if torch.cuda.device_count() > 1 else "cuda:0"
    # Reading GGUF makes hundreds of thousands of small objects that all live until the end:
    # collections while it does find nothing and cost a third of the time.
    stored = stored_format_of(path)
    gc.disable()
    try:
        if stored is not None:
            return load_quantized(path, stored, dtype=getattr(torch, dtype), options=options)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), local_files_only=True, **options
        )
    except torch.OutOfMemoryError as error:
        raise EngineError(f"The model does not fit: {error}") from error
    except PacelineError:
        raise
    except Exception as error:  # transformers raises many kinds; each means the checkpoint
        log.exception("loading %s failed", path)
        raise CheckpointError(
            f"Cannot load a model from {path}: {type(error).__name__}: {_first_line(error)}",
            hint="check that the download is whole and the path is a Hugging Face directory "
            "(config.json, *.safetensors) or a GGUF file",
        ) from error
    finally:
        gc.enable()
    return model.eval(), {"checkpoint_format": "none"}


def _explain(error: Exception, config: ReferenceConfig) -> EngineError:
    if "out of memory" in str(error).lower():
        smaller = max(1, config.batch_size // 2)
        return EngineError(
            f"Out of memory with batches of {config.batch_size}: {_first_line(error)}",
            hint=f"--set engine.reference.batch_size={smaller}",
        )
    return EngineError(f"A batch failed: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]
