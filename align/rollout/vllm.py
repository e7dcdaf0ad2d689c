"""Sampling from a vLLM server, token ids in and out, with the log-probs that it drew from.

The distribution is the softmax of logits/temperature and nothing else: each request sets every
sampling parameter itself, and the server was started with `--generation-config vllm` (none of the
model's defaults) and `--logprobs-mode processed_logprobs` (of what was drawn from).

Each completion is a request of its own with its own seed. So a sample depends on the seed and its
prompt and, but for the rounding of another batch, on nothing else. Where a completion ends is
decided by the same `StopRule` as in `align.rollout.hf`; the server only ends early.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.config_errors import Failed
from align.rollout.base import Interrupted, Samples, StopRule, check_decoding, check_prompts
from align.rollout.vllm_http import COMPLETIONS, Asked


@dataclass(frozen=True)
class Served:
    """A model on a server, or in this process.

    model: its name there. positions: of prompt and completion together.
    """

    http: Asked
    model: str
    positions: int | None = None


@dataclass
class VllmSampler:
    """Samples from softmax(logits/temperature) of a served model; fields as in `HFSampler`.

    batch_size: requests under way at once. temperature 0 picks the likeliest token. Log-probs are
    in nats; with top_p < 1 or top_k > 0 they are of the truncated distribution.
    """

    served: Served
    tokenizer: Any
    stop_ids: Collection[int]
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 64
    stop_strings: Sequence[str] = ()
    want_logps: bool = False
    interrupted: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        check_decoding(self)
        self.rule = StopRule(self.tokenizer, self.stop_ids, self.stop_strings, self.min_new_tokens)

    def sample(self, prompts: list[list[int]], n: int, seed: int | Sequence[int]) -> Samples:
        """Return n completions of each prompt, in the order of the prompts.

        seed: one for all, or one for each completion, whose sample then depends on nothing else.
        UserError when the longest prompt leaves no room for max_new_tokens; EngineDown or
        EngineRefused when the server fails; Failed when an answer is not what was asked for;
        Interrupted.
        """
        check_prompts(prompts, self.max_new_tokens, self.served.positions)
        rows = [ids for ids in prompts for _ in range(n)]
        seeds = row_seeds(len(rows), seed)
        bodies = [self._request(ids, s) for ids, s in zip(rows, seeds, strict=True)]
        answers = self.served.http.ask_all(
            COMPLETIONS, bodies, self.batch_size, self.interrupted or (lambda: False)
        )
        if answers is None:
            raise Interrupted("sampling was interrupted")
        drawn = [self._read(answer) for answer in answers]
        logps = [lp for _, lp in drawn] if self.want_logps else None
        return self.rule.samples([list(ids) for ids in rows], [ids for ids, _ in drawn], logps)

    def _request(self, prompt: Sequence[int], seed: int) -> dict[str, Any]:
        """The body of one completion's request; nothing is left to a default."""
        return {
            "model": self.served.model,
            "prompt": list(prompt),
            "n": 1,
            "seed": seed,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # Its end is ours to say: the model's own EOS ends it where it is among these.
            "ignore_eos": True,
            "stop_token_ids": sorted(self.rule.stop_ids),
            "stop": list(self.rule.stop_strings),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
        }

    def _read(self, answer: Any) -> tuple[list[int], list[float]]:
        """Ids and log-probs of one answer; Failed where it is short of either."""
        try:
            (choice,) = answer["choices"]
            ids, why = choice["token_ids"], choice["finish_reason"]
            logps = choice["logprobs"]["token_logprobs"]
            whole = len(ids) == len(logps) and all(isinstance(x, float) for x in logps)
        except (TypeError, KeyError, ValueError) as error:
            raise Failed(
                f"{self.served.http.url} does not answer with token ids and log-probs "
                f"({type(error).__name__}: {error}): it must be a vLLM of 0.11 or later"
            ) from error
        if not whole or not ids or len(ids) > self.max_new_tokens:
            raise Failed(
                f"{self.served.http.url} answered with {len(ids)} tokens and {len(logps)} "
                f"log-probs to a request of {self.max_new_tokens}"
            )
        if len(ids) < self.max_new_tokens and why != "stop":
            raise Failed(
                f"{self.served.http.url} ended a completion after {len(ids)} of "
                f"{self.max_new_tokens} tokens for the reason {why!r}: it is no whole sample"
            )
        return [int(i) for i in ids], logps


def row_seeds(rows: int, seed: int | Sequence[int]) -> list[int]:
    """A seed in [0, 2^63) for each completion, from one for all, or those given."""
    if isinstance(seed, int):
        return [_mixed(seed, row) for row in range(rows)]
    if len(seed) != rows:
        raise ValueError(f"{len(seed)} seeds for {rows} completions")
    # Mixed too: neighbouring seeds of one generator would begin alike on some devices.
    return [_mixed(s, 0) for s in seed]


def _mixed(seed: int, row: int) -> int:
    state = np.random.SeedSequence([seed % 2**63, row]).generate_state(1, np.uint64)
    return int(state[0] >> 1)
