"""Pre-training: rows of block_size tokens cut from all texts, EOS between them; next-token loss.

Rows come from `align.data.token_rows` in an order that seed and pass decide; here is what is done
with them. Attention crosses the border between two texts of a row, as in GPT-2, where the EOS
between them is there to be learned; with pretrain.document_mask each text sees itself alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from align import losses
from align.config_errors import UserError
from align.groups import GroupBatch, TokenGroup
from align.policy import Policy
from align.train import batches as cut
from align.train import pretrain_data
from align.train.meter import Objective
from align.train.overfit import OverfitWatch
from align.train.pretrain_data import Loaded, MixtureBatches
from align.train.runner import callbacks, run_training, training_arguments, write_counts
from align.train.samples import prompt_ids, sample_texts
from align.train.sft import TokenTrainer
from align.train.speed import device_peak, token_operations

if TYPE_CHECKING:
    from align.config import Config


class PretrainTrainer(TokenTrainer):
    """Next-token loss on rows of a mixture, with z-loss, MFU and samples."""

    def __init__(self, policy: Policy, config: Config, args: Any, data: Loaded) -> None:
        self.mixture = data.train
        watching = [OverfitWatch(), *callbacks(config)]
        train: Any = data.train
        super().__init__(policy, config, args, train, data.held_out, watching)
        seen = data.text_tokens if config.pretrain.document_mask else None
        p = config.pretrain
        share = p.mask_probability if p.arch == "bert" else None
        self._operations = token_operations(policy.module.lm, p.block_size, seen, share)
        self._peak = device_peak(self.args.device)

    def get_train_dataloader(self) -> Any:
        """Micro-batches of this rank: rows of the mixture."""
        args = self.args
        sampler = MixtureBatches(
            self.mixture, args.per_device_train_batch_size, args.gradient_accumulation_steps,
            rank=self.place, world=self.places,
        )  # fmt: skip
        return DataLoader(self.mixture, batch_sampler=sampler, collate_fn=self.collate)

    def collate(self, groups: Sequence[Any]) -> dict[str, Any]:
        """One micro-batch of rows; a row is a list of groups."""
        return super().collate([group for row in groups for group in row])

    def filler(self) -> TokenGroup:
        """A group without loss."""
        return cut.filler()

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Matrices decay; gains and biases, which have one dimension, do not."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Σ −log p(token), and in training Σ z_loss·(log Z)², nats."""
        weight = self.settings.pretrain.z_loss
        if not weight or not model.training:
            return super().objective(model, batch)
        out = model(batch, want=("logps", "lse"))
        drift = losses.z_loss(out["lse"], weight).sum()
        stats = {"loss/z": (drift.detach(), batch.num_tokens)}
        return Objective(losses.sft(out["logps"]).sum() + drift, stats)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed as a share of the peak; the perplexity is that of the tokens alone."""
        if "loss" in logs:
            logs["tokens_per_s"] = self.tokens_per_s()
            if self._peak:
                rate = logs["tokens_per_s"] * self._operations
                logs["mfu"] = rate / (self._peak * self.args.world_size)
            if self.settings.pretrain.z_loss:
                logs |= self.meter.flush()
        super().log(logs, start_time)

    def nll(self, logs: dict[str, float], name: str) -> float:
        """The loss per token without the z-loss."""
        return logs[name] - (logs.get("loss/z", 0.0) if name == "loss" else 0.0)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As every method, and the samples of pretrain.sample_prompts."""
        start = time.monotonic()
        metrics = super().evaluate(*args, **kwargs)
        p = self.settings.pretrain
        if p.sample_prompts:
            sample_texts(self, p.sample_prompts, p.samples, p.sample_tokens)
        self._clock += time.monotonic() - start  # the speed is that of training
        return metrics


def train(config: Config) -> dict[str, float]:
    """Pre-train on data.text and return the last figures."""
    args = training_arguments(config)
    check_objective(config)
    if config.pretrain.arch == "bert":
        from align.train.masked_lm import MaskedTrainer, load_masked

        policy, kind = load_masked(config), MaskedTrainer
    else:
        policy, kind = Policy.load(config), PretrainTrainer
    check_policy(policy, config)
    data = pretrain_data.load(config, policy.tokenizer)
    write_counts(config, data.counts)
    return run_training(kind(policy, config, args, data), config)


def check_objective(config: Config) -> None:
    """Refuse to go on with a masked LM as a causal one: it would see what it predicts."""
    folder = Path(config.policy.path or "")
    if config.pretrain.arch == "bert" or not (folder / "config.json").is_file():
        return
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    if any("MaskedLM" in name for name in names or []):
        reason = f"learns the next token, but {folder} fills in masked ones"
        raise UserError("pretrain.arch", config.pretrain.arch, reason, "Use bert")


def check_policy(policy: Policy, config: Config) -> None:
    """Raise UserError where rows, prompts or tokenizer do not fit the model."""
    p, tokenizer = config.pretrain, policy.tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError("pretrain.tokenizer", policy.path, "has no EOS token", "Add one")
    positions = getattr(policy.module.config, "max_position_embeddings", None) or math.inf
    if p.block_size > positions:
        reason = f"is above the {positions} positions of {policy.path}"
        raise UserError("pretrain.block_size", p.block_size, reason, f"Use at most {positions}")
    longest = max((len(prompt_ids(tokenizer, s)) for s in p.sample_prompts), default=0)
    if p.sample_prompts and longest + p.sample_tokens > positions:
        reason = f"does not fit: a prompt has {longest} tokens and the model {positions} positions"
        raise UserError("pretrain.sample_tokens", p.sample_tokens, reason, "Lower it")
    if config.policy.path is not None and p.tokenizer not in (None, "auto"):
        _same_tokenizer(tokenizer, p.tokenizer, config.policy.path)


def _same_tokenizer(tokenizer: Any, path: str, model: str) -> None:
    """The tokenizer that the user names must be the one that the model was trained with."""
    from align.checkpoints import read_tokenizer
    from align.tokenizer_identity import tokenizer_fingerprint

    if Path(path).is_dir() and tokenizer_fingerprint(read_tokenizer(path)) != tokenizer_fingerprint(
        tokenizer
    ):
        reason = f"is not the tokenizer of policy.path={model!r}, whose ids mean other text"
        raise UserError("pretrain.tokenizer", path, reason, "Use null, or train from nothing")
