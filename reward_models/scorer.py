"""Text in, scores out: the same score for any batch size, padding and order.

A score is the head's output at the completion's last token, which is its end-of-turn token. That
index is computed from the ids, never from where padding begins: pad may equal EOS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config_errors import UserError
from align.records import RecordError
from reward_models import outputs
from reward_models.contract import check_contract
from reward_models.model import load_reward_model, plain

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Scored:
    """A text's score; how far the heads disagree about it; its attributes.

    uncertainty: standard deviation over heads in the score's unit, None where the model has one
    head. attributes: in the unit of their ratings, {} where the model has none.
    """

    score: float
    uncertainty: float | None
    attributes: dict[str, float]


class Scorer:
    """A reward checkpoint ready to score text.

    truncated: how many texts were shortened so far. contract: the checkpoint's.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        *,
        loaded: tuple[Any, Any, Any] | None = None,
        dtype: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        """path, or loaded: (model, tokenizer, contract) that are in memory already.

        model: a sequence classifier, or a LastToken on one.

        max_length: tokens, by default the contract's, else the model's positions. progress: called
        with (done, total) after every batch.
        """
        if batch_size < 1:
            raise UserError("batch_size", batch_size, "is below 1", "Use 1 or more")
        from reward_models.last_token import LastToken

        if loaded is None:
            if path is None:
                raise ValueError("Scorer needs a path or a loaded model")
            loaded = load_reward_model(path, dtype=dtype)
        self.model, self.tokenizer, self.contract = loaded
        if max_length is not None and max_length < 2:
            raise UserError("max_length", max_length, "is below 2", "Use at least 2 tokens")
        made = isinstance(self.model, LastToken)
        self.module = self.model if made else LastToken(plain(self.model))
        self._run: Callable[..., Any] = self.module
        self._passes: Callable[[int], int] = int  # as many as there are batches
        check_contract(
            self.contract,
            self.tokenizer,
            path=str(path or ""),
            heads=self.module.head.out_features,
            max_length=max_length,
        )
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limits = [n for n in (max_length or self.contract.max_length, positions) if n]
        self.max_length = min(limits) if limits else None
        self.batch_size, self.progress, self.truncated = batch_size, progress, 0
        if device is not None:
            _move(self.model, device)

    def score(
        self, prompts: Sequence[Any], completions: Sequence[Any], *, calibrated: bool = False
    ) -> list[float]:
        """One score per (prompt, completion), in their order; see ``reduce``.

        prompts: message lists. completions: texts or message lists. calibrated: in standard
        deviations from the mean of the contract's reference samples. RecordError names the row.
        """
        return self.reduce(self.score_heads(prompts, completions), calibrated=calibrated)

    def reduce(self, rows: Sequence[Sequence[float]], *, calibrated: bool = False) -> list[float]:
        """One score per row of raw outputs: the mean of the heads, or the weighted attributes."""
        return [self._scaled(outputs.score(self.contract, row), calibrated) for row in rows]

    def details(
        self, prompts: Sequence[Any], completions: Sequence[Any], *, calibrated: bool = False
    ) -> list[Scored]:
        """As ``score``, with the uncertainty and the attributes of each."""
        return self.explain(self.score_heads(prompts, completions), calibrated=calibrated)

    def explain(self, rows: Sequence[Sequence[float]], *, calibrated: bool = False) -> list[Scored]:
        """As ``reduce``, with the uncertainty and the attributes of each."""
        unit = self.contract.score_std if calibrated else 1.0
        made = []
        for row, value in zip(rows, self.reduce(rows, calibrated=calibrated), strict=True):
            spread = outputs.spread(self.contract, row)
            spread = None if spread is None else spread / unit
            made.append(Scored(value, spread, outputs.attributes(self.contract, row)))
        return made

    def _scaled(self, score: float, calibrated: bool) -> float:
        mean, std = self.contract.score_mean, self.contract.score_std
        return (score - mean) / std if calibrated else score

    def score_heads(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        """Raw outputs of every head, (rows, heads)."""
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions")
        ids = [
            self.encode(p, c, row)
            for row, (p, c) in enumerate(zip(prompts, completions, strict=True))
        ]
        return self.score_ids(ids)

    def encode(self, prompt: Any, completion: Any, row: int = 0) -> list[int]:
        """Token ids of prompt and completion, fitted to ``max_length`` (counted when shortened).

        Cut as in training, by the contract's rule; a completion that is cut keeps its end-of-turn
        token, because the score is read there. RecordError too_long: max_length leaves no room
        beside what the template puts between prompt and completion.
        """
        from align.chat import header_len, render_completion
        from align.data.fit import fit_group

        try:
            head, tail, _ = render_completion(self.tokenizer, prompt, completion)
        except RecordError as error:
            raise error.at(f"row {row}") from None
        fitted = fit_group(
            head,
            [tail],
            max_length=self.max_length,
            max_prompt_length=self.contract.max_prompt_length,
            truncation=self.contract.truncation,  # pyright: ignore[reportArgumentType]
            header_len=header_len(self.tokenizer),
        )
        if isinstance(fitted, str):
            reason = f"no room for a completion in {self.max_length} tokens"
            raise RecordError(reason, code=fitted, where=f"row {row}")
        kept = fitted.completions[0]
        self.truncated += fitted.prompt_truncated or len(kept) < len(tail)
        return fitted.prompt_ids + kept[:-1] + tail[-1:]

    def score_ids(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Raw outputs (rows, heads) of token id rows, read at each row's last token."""
        import torch

        result: list[list[float]] = [[] for _ in rows]
        done = 0
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                batches = list(self._batches(rows))
                for places in batches:
                    for place, values in zip(
                        places, self._forward([rows[i] for i in places]), strict=True
                    ):
                        result[place] = values
                    done += len(places)
                    if self.progress:
                        self.progress(done, len(rows))
                for _ in range(self._passes(len(batches)) - len(batches)):
                    self._forward([[0]])  # other ranks have more to read
        finally:
            self.model.train(was_training)
        return result

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of rows of similar length, longest first: memory shows its peak at once."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        import torch

        device = self.module.head.weight.device
        width = max(len(row) for row in rows)
        # Any id can fill the padding: it is masked, and no row reads it.
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row))
            mask[i, : len(row)] = 1
        last = torch.tensor([len(row) - 1 for row in rows])
        return self._run(ids.to(device), mask.to(device), last.to(device)).tolist()

    def run_by(self, run: Callable[..., Any], passes: Callable[[int], int]) -> None:
        """Have another run `module`: an engine that holds its weights in parts on all ranks.

        run: called as the module. passes: how many calls every rank makes where this one has so
        many batches; the surplus is thrown away.
        """
        self._run, self._passes = run, passes


def _move(model: Any, device: Any) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # no such device, not compiled in, no memory
        reason = f"cannot be used: {str(error).strip().splitlines()[0]}"
        raise UserError("device", str(device), reason, "Use cpu, cuda or cuda:N") from None
