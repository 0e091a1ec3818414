"""From what a server said to a Completion, or to a clear error: nothing is clipped or guessed.

An answer must hold the contract of `paceline.engines.Completion`: ids of the vocabulary, EOS once
and last when EOS ended it, no more than the limit. A server that leaves EOS out of its ids has it
put back, which is counted; everything else that is not as it must be ends the run by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.engines import Completion, Request, TextCodec
from paceline.engines.endpoint_dialect import Piece
from paceline.errors import EngineError

__all__ = ["Reader"]

_INT32 = np.int32


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """Reads the answers of one server. `codec` is there when the server speaks text only.

    `counts` is shared by all servers of a run: eos_appended, retokenised, retokenised_clipped,
    prompt_len_differs, first_token_differs.
    """

    server: str
    model: str
    eos_token_id: int
    vocabulary_size: int
    counts: Counter[str]
    codec: TextCodec | None = None

    def read(self, request: Request, answer: Piece) -> Completion:
        """Raises EngineError when the answer breaks the contract."""
        if answer.model is not None and answer.model != self.model:
            raise self._error(
                f"answered with the model '{answer.model}' instead of '{self.model}'",
                hint="serve the model under that name, or --set engine.endpoint.model=NAME",
            )
        if answer.finish not in ("stop", "length"):
            raise self._error(f"ended an answer with finish_reason {answer.finish!r}")
        self._check_prompt(request, answer)
        if self.codec is not None:
            token_ids = self._ids_of_text(request, answer, self.codec)
        else:
            token_ids = self._ids(answer)
        stopped = self._check_end(answer, token_ids)
        self._check_length(request, answer, token_ids)
        ids = np.asarray(token_ids, dtype=_INT32)
        return Completion(request.request_id, ids, "stop" if stopped else "length")

    def first_of(self, piece: Piece) -> int | None:
        """The first token of a streamed answer, as far as its first chunk tells."""
        if self.codec is None:
            return piece.token_ids[0] if piece.token_ids else None
        ids = self.codec.ids_of(piece.text) if piece.text else []
        return ids[0] if ids else None

    def _check_prompt(self, request: Request, answer: Piece) -> None:
        sent, seen = len(request.token_ids), answer.prompt_len
        if seen is None or seen == sent:
            return
        if self.codec is not None:
            self.counts["prompt_len_differs"] += 1
            return
        raise self._error(
            f"saw a prompt of {seen} tokens where {sent} were sent",
            hint="the server must take token ids as they are: no BOS added, nothing cut off",
        )

    def _ids(self, answer: Piece) -> list[int]:
        if not answer.token_ids:
            raise self._error("answered without a token")
        token_ids = list(answer.token_ids)
        if min(token_ids) < 0 or max(token_ids) >= self.vocabulary_size:
            wrong = next(i for i in token_ids if not 0 <= i < self.vocabulary_size)
            raise self._error(
                f"returned the token id {wrong}, outside the vocabulary of {self.vocabulary_size}",
                hint="check that the server has the model of this benchmark",
            )
        said = answer.output_len
        if said is not None and said not in (len(token_ids), len(token_ids) + 1):
            raise self._error(
                f"returned {len(token_ids)} token ids and says that it made {said}",
                hint="a stream that leaves tokens out is no exact answer: "
                "--set engine.endpoint.stream=false",
            )
        return token_ids

    def _ids_of_text(self, request: Request, answer: Piece, codec: TextCodec) -> list[int]:
        """Ids of the text: near to what the model chose, not always the same."""
        token_ids = codec.ids_of(answer.text) if answer.text else []
        if not token_ids and answer.finish != "stop":
            raise self._error("answered without a token")
        self.counts["retokenised"] += 1
        limit = request.max_new_tokens - (answer.finish == "stop")
        if len(token_ids) > limit:
            self.counts["retokenised_clipped"] += 1
            token_ids = token_ids[:limit]
        return token_ids

    def _check_end(self, answer: Piece, token_ids: list[int]) -> bool:
        """Whether EOS ended the answer; appends it where the server left it out."""
        eos = self.eos_token_id
        if eos in token_ids[:-1]:
            place = token_ids.index(eos)
            after = len(token_ids) - place - 1
            raise self._error(
                f"went on for {after} tokens after EOS, at place {place}",
                hint="start the server without ignore_eos",
            )
        if token_ids and token_ids[-1] == eos:
            return True
        if answer.finish == "length":
            return False
        if answer.stop_token not in (None, eos):
            raise self._error(
                f"stopped at {answer.stop_token!r}, which is not the benchmark's EOS ({eos})",
                hint="start the server without other stop tokens (generation_config.json)",
            )
        token_ids.append(eos)
        self.counts["eos_appended"] += 1
        return True

    def _check_length(self, request: Request, answer: Piece, token_ids: Sequence[int]) -> None:
        length, limit = len(token_ids), request.max_new_tokens
        if length > limit:
            raise self._error(f"returned {length} tokens where at most {limit} were asked for")
        if token_ids[-1] == self.eos_token_id:
            if length <= request.min_new_tokens:
                raise self._error(
                    f"ended an answer after {length} tokens, EOS included, where at least "
                    f"{request.min_new_tokens} must come before EOS",
                    hint="the server does not heed min_tokens",
                )
        elif length < limit and (self.codec is None or (answer.output_len or limit) < limit):
            raise self._error(
                f"cut an answer off at {length} of {limit} tokens without EOS",
                hint="give the server a longer context (max_model_len, n_ctx)",
            )

    def _error(self, what: str, *, hint: str | None = None) -> EngineError:
        return EngineError(f"{self.server} {what}.", hint=hint)
