"""Masked language modelling (BERT): some tokens of a row are hidden and filled in.

The rows are those of pre-training. Which of a row's tokens are to be predicted follows from seed,
row and its tokens alone, so neither the batch nor a resume changes it, and every pass has others.
Devlin et al. 2019 (arXiv:1810.04805), section 3.1.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align import policy_loading as loading
from align.config_errors import UserError
from align.fresh import add_mask_token
from align.groups import GroupBatch, TokenGroup, collate
from align.logprobs import default_chunk_tokens
from align.policy import Policy
from align.policy_module import PolicyModule, base_model, body_of
from align.train.pretrain import PretrainTrainer

if TYPE_CHECKING:
    from align.config import Config

_HIDDEN, _SWAPPED = 0.8, 0.1  # of the chosen tokens; the rest is shown as it is
_TOLERANCE = 1e-3


class MaskedModule(PolicyModule):
    """A transformers masked LM with a head that is called on the chosen places alone."""

    def _hidden(self, model: nn.Module, batch: GroupBatch) -> Tensor:
        # Positions are the model's own affair: RoBERTa's begin at 2.
        mask = batch.attention_mask()
        return body_of(model)(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state

    def _head(self, model: nn.Module, tokens: int) -> tuple[Any, dict[str, Any]]:
        base = base_model(model)
        decoder = base.get_output_embeddings()
        return masked_head(base), {"chunk_tokens": default_chunk_tokens(decoder)}


class MaskedPolicy(Policy):
    """A policy whose batches hide tokens."""

    def collate(self, groups: Sequence[TokenGroup], *, packed: bool = False) -> GroupBatch:
        """Lay rows out, and hide the tokens that `chosen` names."""
        bare = [TokenGroup(g.prompt_ids, g.completions, g.masks) for g in groups]
        batch = collate(bare, self.pad_id, "plain")
        ids, counts, rows, places = batch.input_ids.clone(), [0], [], []
        for r, group in enumerate(groups):
            where, shown = hidden_tokens(group, self.config, self.tokenizer)
            ids[r, where] = shown
            rows += [r] * len(where)
            places += where
            counts.append(len(places))
        row, place = torch.tensor(rows, dtype=torch.long), torch.tensor(places, dtype=torch.long)
        return dataclasses.replace(
            batch, input_ids=ids, pred_row=row, pred_col=place, candidate=row,
            labels=batch.input_ids[row, place], offsets=torch.tensor(counts),
        )  # fmt: skip


class MaskedTrainer(PretrainTrainer):
    """−log p of the chosen tokens."""

    def __init__(self, policy: Policy, config: Config, args: Any, data: Any) -> None:
        data.train.draws = True
        super().__init__(policy, config, args, data)

    def items(self, groups: Sequence[TokenGroup]) -> float:
        """Tokens that are to be predicted."""
        return float(sum(len(chosen(group, self.settings)[0]) for group in groups))


def chosen(group: TokenGroup, config: Config) -> tuple[list[int], Tensor]:
    """Places of a row's tokens to predict, and a random number in [0, 1) for each.

    Every token but the context is chosen with pretrain.mask_probability, at least one a row.
    """
    ids = group.prompt_ids + group.completions[0]
    start = len(group.prompt_ids)
    open_to = [start + i for i, m in enumerate(group.mask_of(0)) if m]
    if not open_to:
        return [], torch.zeros(0)
    draw = int(group.extras.get("draw", [0])[0])
    said = zlib.crc32(f"{config.train.args.get('seed', 42)} {draw}".encode())
    content = zlib.crc32(torch.tensor(ids, dtype=torch.int32).numpy().tobytes(), said)
    generator = torch.Generator().manual_seed(content)
    drawn = torch.rand(2, len(open_to), generator=generator)
    picked = (drawn[0] < config.pretrain.mask_probability).nonzero()[:, 0].tolist()
    picked = picked or [int(drawn[0].argmin())]
    return [open_to[i] for i in picked], drawn[1, picked]


def hidden_tokens(group: TokenGroup, config: Config, tokenizer: Any) -> tuple[list[int], Tensor]:
    """(places, ids shown there): 80 % the mask token, 10 % any token, 10 % the token itself."""
    where, fate = chosen(group, config)
    ids = torch.tensor(group.prompt_ids + group.completions[0], dtype=torch.long)[where]
    # The fate's own decimals say which token: nothing else has to be drawn.
    within = ((fate - _HIDDEN) / _SWAPPED).clamp(0, 1 - 1e-6)
    swapped = (within * len(tokenizer)).long()
    shown = torch.where(fate < _HIDDEN + _SWAPPED, swapped, ids)
    return where, torch.where(fate < _HIDDEN, torch.full_like(ids, tokenizer.mask_token_id), shown)


def masked_head(model: Any) -> Any:
    """What turns hidden states into logits: `cls` in BERT's family, `lm_head` in RoBERTa's."""
    return getattr(model, "cls", None) or getattr(model, "lm_head", None)


def load_masked(config: Config) -> MaskedPolicy:
    """The model that `config.policy` names, as a masked LM; a mask token is added where none is.

    Raises UserError for a model that is none, or that has a head this module does not know.
    """
    from transformers import AutoModelForMaskedLM

    path = loading.starting_path(config)
    tokenizer = loading.load_tokenizer(path, config)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.sep_token
    model = loading.load_body(path, config, kind=AutoModelForMaskedLM)
    add_mask_token(tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    loading.check_vocabulary(model, tokenizer, path)
    _check_head(model, path)
    return MaskedPolicy(MaskedModule(model), tokenizer, path=path, config=config, layout="plain")


@torch.no_grad()
def _check_head(model: Any, path: str) -> None:
    """The head on hidden states must give the model's own logits."""
    ids = torch.arange(5, 13)[None] % model.config.vocab_size
    head, own = masked_head(model), model.eval()(input_ids=ids).logits
    found = head(body_of(model)(input_ids=ids).last_hidden_state) if head is not None else None
    if found is None or float((found - own).abs().max()) > _TOLERANCE:
        reason = f"is a {type(model).__name__}, whose head is not known here"
        raise UserError("policy.path", path, reason, "Use a model of BERT's or RoBERTa's family")
