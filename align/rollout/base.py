"""What every sampler takes and returns, and where a completion ends.

A sampler never changes the distribution behind the trainer's back: no repetition penalty, no
suppressed stop token, no default top-k. What it draws from is the softmax of logits/temperature,
because that is what the trainer's log-probs are of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from align.config_errors import UserError

if TYPE_CHECKING:
    from align.config_schema import Rollout

RANK_STRIDE = 100_003
"""Distance between the seeds of two ranks: a prime above any number of updates' small offsets."""


@dataclass
class Samples:
    """n completions of each prompt; row i·n + j is the j-th completion of prompt i.

    prompt_ids: R lists, each prompt repeated n times. completions: R lists of ids, the stop token
    included where there is one, never padding. logps: R lists as long as the completions, nats, of
    softmax(logits/temperature) before top_k and top_p (the trainer's distribution), or None when
    not asked for. finished: R, whether a stop came, and not too early. texts: R decoded completions
    without special tokens and without the stop.
    """

    prompt_ids: list[list[int]]
    completions: list[list[int]]
    logps: list[list[float]] | None
    finished: list[bool]
    texts: list[str]

    def __len__(self) -> int:
        """Number of completions."""
        return len(self.completions)


class Interrupted(Exception):
    """Sampling was given up because the sampler was told to."""


class Sampler(Protocol):
    """Anything that completes prompts."""

    def sample(self, prompts: list[list[int]], n: int, seed: int | Sequence[int]) -> Samples:
        """Return n completions of each prompt; equal arguments and weights give equal samples."""
        ...


def rank_seed(seed: int, rank: int) -> int:
    """Seed of one rank's sampling, seed + rank·100003, so that no two ranks draw alike."""
    return seed + rank * RANK_STRIDE


def cut_at_stop(
    ids: Sequence[int], stop_ids: Collection[int], min_new_tokens: int = 0
) -> tuple[list[int], bool]:
    """Cut a completion after its first stop token.

    Returns (ids up to and including the stop token, finished). finished is False when there is no
    stop token, and when fewer than min_new_tokens tokens came before it: such a completion is cut
    all the same (the policy did end there) but counts as one without an end.
    """
    stops = set(stop_ids)
    for i, token in enumerate(ids):
        if token in stops:
            return list(ids[: i + 1]), i >= min_new_tokens
    return list(ids), False


class StopRule:
    """Decides where a completion ends: at a stop token, or where a stop string is complete.

    stop_ids: token ids that end a completion and stay in it. stop_strings: texts that end it with
    the token that completes them; they are no part of the text handed to a reward.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: Collection[int],
        stop_strings: Sequence[str] = (),
        min_new_tokens: int = 0,
    ) -> None:
        if any(not s for s in stop_strings):
            raise UserError("rollout.stop", list(stop_strings), "has an empty string", "Remove it")
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(int(i) for i in stop_ids)
        self.stop_strings = tuple(stop_strings)
        self.min_new_tokens = min_new_tokens
        # A token carries at least one byte of text or is special; the rest is room for the latter
        # and for decoders that treat the first token of a text differently.
        self._tail = max((len(s.encode()) for s in stop_strings), default=0) + 4

    def completes_string(self, ids: Sequence[int]) -> bool:
        """Whether a stop string stands in the text of the last few ids."""
        if not self.stop_strings:
            return False
        tail = self._decode(ids[-self._tail :], skip_special=False)
        return any(s in tail for s in self.stop_strings)

    def cut(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Cut at the first stop, token or string. Returns (ids, finished) as `cut_at_stop`."""
        cut, finished = cut_at_stop(ids, self.stop_ids, self.min_new_tokens)
        if self.stop_strings:
            for end in range(1, len(cut) + 1):
                if self.completes_string(cut[:end]):
                    return cut[:end], end - 1 >= self.min_new_tokens
        return cut, finished

    def samples(
        self,
        prompt_ids: list[list[int]],
        drawn: Sequence[Sequence[int]],
        logps: Sequence[Sequence[float]] | None,
    ) -> Samples:
        """Samples of what was drawn after each of R prompts, ended here; logps as long as drawn."""
        cut = [self.cut(ids) for ids in drawn]
        kept = None
        if logps is not None:
            kept = [list(lp[: len(ids)]) for lp, (ids, _) in zip(logps, cut, strict=True)]
        return Samples(
            prompt_ids=prompt_ids,
            completions=[ids for ids, _ in cut],
            logps=kept,
            finished=[finished for _, finished in cut],
            texts=[self.text(ids) for ids, _ in cut],
        )

    def text(self, ids: Sequence[int]) -> str:
        """Text of a cut completion, without the stop and without special tokens.

        With a chat template it is `align.chat.completion_text`, which also takes off the white
        space that the template puts before an answer, up to the first stop string.
        """
        body = list(ids[:-1]) if len(ids) and ids[-1] in self.stop_ids else list(ids)
        if getattr(self.tokenizer, "chat_template", None):
            from align.chat import completion_text

            text = completion_text(self.tokenizer, body)
        else:
            text = self._decode(body, skip_special=True)
        # Without special tokens two pieces of a text may meet and spell a stop that was not there.
        if not self.completes_string(ids):
            return text
        ends = [text.find(s) for s in self.stop_strings if s in text]
        return text[: min(ends)] if ends else text

    def _decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )


def check_decoding(sampler: Any) -> None:
    """Refuse numbers that no sampler can use (UserError)."""
    if not sampler.temperature >= 0:
        raise UserError("rollout.temperature", sampler.temperature, "is negative", "Use 0 or more")
    for name in ("max_new_tokens", "batch_size"):
        if getattr(sampler, name) < 1:
            raise UserError(f"rollout.{name}", getattr(sampler, name), "is below 1", "Use 1")


def check_prompts(prompts: list[list[int]], max_new_tokens: int, limit: int | None) -> None:
    """Refuse prompts that leave no room in `limit` positions (UserError), and empty ones.

    Before anything is sampled: an embedding would fail deep inside, and a server cuts the
    completion without a word.
    """
    if any(not p for p in prompts):
        raise ValueError("a prompt without tokens cannot be completed")
    longest = max((len(p) for p in prompts), default=0)
    if limit and longest + max_new_tokens > limit:
        field, value = "rollout.max_new_tokens", max_new_tokens
        has = f"the longest prompt has {longest} tokens and the model {limit} positions"
        room = f"Set data.max_prompt_length to {limit - value} or less" if limit > value else ""
        if longest < limit:
            room = f"Use at most {limit - longest}. {room}".strip()
        raise UserError(field, value, f"does not fit: {has}", room)


def make_sampler(rollout: Rollout, model: Any, tokenizer: Any, **overrides: Any) -> Sampler:
    """Sampler for the `rollout` section of a configuration.

    model: a transformers model, with a vLLM engine an `align.rollout.vllm.Served`. overrides:
    any field of the sampler, e.g. temperature=0.0 for evaluation, want_logps=True.
    """
    from align.chat import stop_ids

    fields: dict[str, Any] = {
        "stop_ids": stop_ids(tokenizer),
        "stop_strings": tuple(rollout.stop),
        "max_new_tokens": rollout.max_new_tokens,
        "min_new_tokens": rollout.min_new_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "batch_size": rollout.batch_size,
    }
    made: Any
    if rollout.engine == "hf":
        from align.rollout.hf import HFSampler as made
    else:
        from align.rollout.vllm import VllmSampler as made
    return made(model, tokenizer, **(fields | overrides))
