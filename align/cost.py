"""What a step costs on paper: products, bytes held, bytes sent.

A token that passes the body is multiplied with W weights (2·W operations), attends to what it sees
(4·q·layers operations a pair of tokens, q the width of all query heads), and is multiplied with the
head's H·V weights where something is predicted. A backward pass makes the slope of the inputs (as
much again) and of the weights where they are trained (as much again); attention's costs 2.5 times
its forward pass, because kernels that keep no score matrix make it anew.

Memory and communication are those of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, sections 5
and 7). `tests/test_cost.py` holds these formulas to what runs of small models really do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ATTENTION_BACKWARD = 2.5
ADAM_BYTES = 8  # two float32 moments
MASTER_BYTES = 4  # the float32 copy of 16-bit weights


@dataclass(frozen=True)
class Shape:
    """Widths of a decoder, in numbers (not bytes).

    hidden: residual stream. query, key_value: all heads together. mlp: inner width a token passes
    (of the experts that it is routed to). inner_copies: tensors of that width which a layer keeps
    for the backward pass. body: weights a token is multiplied with, without embeddings and head.
    adapter: those of one set of LoRA matrices. head_norms: width of the queries and keys that are
    normalised head by head.
    """

    hidden: int
    layers: int
    query: int
    key_value: int
    mlp: int
    inner_copies: int
    vocabulary: int
    body: int
    parameters: int
    adapter: int = 0
    trained: int = 0
    head_norms: int = 0

    def layer_floats(self) -> float:
        """Numbers that a layer keeps a token for the backward pass, nothing being recomputed."""
        kept = 4 * self.hidden + 3 * self.query + 2 * self.key_value + self.inner_copies * self.mlp
        kept += self.head_norms
        if not self.adapter:  # scales of the norms are trained: their inputs are kept too
            kept += 2 * self.hidden + self.head_norms
        return kept + self.adapter / self.layers / (self.hidden or 1) / 2


@dataclass(frozen=True)
class Work:
    """Tokens that pass the body, pairs of tokens that attention joins, tokens predicted."""

    tokens: float = 0.0
    pairs: float = 0.0
    predicted: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Both together."""
        return Work(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.predicted + other.predicted,
        )

    def times(self, factor: float) -> Work:
        """As often."""
        return Work(self.tokens * factor, self.pairs * factor, self.predicted * factor)


def group_work(prompt: float, completions: Sequence[float], grouped: bool = True) -> Work:
    """Work of one prompt with its completions (lengths in tokens), the prompt read once or each."""
    own = Work(
        sum(completions),
        sum(c * prompt + c * (c + 1) / 2 for c in completions),
        sum(completions),
    )
    reads = 1 if grouped else len(completions)
    return own + Work(prompt, prompt * (prompt + 1) / 2).times(reads)


def forward(shape: Shape, work: Work, *, head: bool = True, adapter: bool = False) -> float:
    """Operations of a forward pass."""
    body = 2 * (shape.body + (shape.adapter if adapter else 0)) * work.tokens
    attention = 4 * shape.query * shape.layers * work.pairs
    return body + attention + (2 * shape.hidden * shape.vocabulary * work.predicted if head else 0)


def backward(shape: Shape, work: Work, *, head: bool = True) -> float:
    """Operations of a backward pass; of adapters alone where the shape has some."""
    twice = 1 if shape.adapter else 2  # slopes of inputs, and of weights
    body = 2 * shape.body * work.tokens * twice + 4 * shape.adapter * work.tokens
    attention = ATTENTION_BACKWARD * 4 * shape.query * shape.layers * work.pairs
    logits = 2 * shape.hidden * shape.vocabulary * work.predicted if head else 0
    return body + attention + logits * twice


def step(
    shape: Shape, work: Work, *, head: bool = True, reference: bool = False, recompute: bool = False
) -> float:
    """Operations of a training step; recompute: gradient checkpointing reads the body twice."""
    total = forward(shape, work, head=head, adapter=bool(shape.adapter)) + backward(
        shape, work, head=head
    )
    if reference:
        total += forward(shape, work, head=head)
    if recompute:
        total += forward(shape, work, head=False, adapter=bool(shape.adapter))
    return total


def ppo_update(
    shape: Shape,
    prompt: float,
    completion: float,
    *,
    prompts: float,
    n: int,
    epochs: int,
    critic: str,
    reward_models: Sequence[Shape] = (),
) -> dict[str, float]:
    """Operations of the phases of a PPO update: sampling, scoring, passes.

    critic: "shared" costs no pass of its own, "adapter" and "separate" cost a second body.
    """
    work = group_work(prompt, [completion] * n).times(prompts)
    alone = group_work(prompt, [completion] * n, grouped=False).times(prompts)
    adapter = bool(shape.adapter)
    own_critic = critic != "shared"
    measured = forward(shape, work, adapter=adapter) + forward(shape, work)
    passes = step(shape, work)
    if own_critic:
        measured += forward(shape, work, head=False, adapter=adapter)
        passes += step(shape, work, head=False)
    return {
        "sampling": forward(shape, work, adapter=adapter),
        "scoring": measured + sum(forward(s, alone, head=False) for s in reward_models),
        "passes": epochs * passes,
    }


@dataclass(frozen=True)
class Held:
    """Bytes in one process. gathered: weights of other processes, while a layer needs them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    gathered: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered


def held(
    shape: Shape,
    *,
    stage: int = 0,
    world: int = 1,
    weight_bytes: float = 4.0,
    frozen_bytes: float | None = None,
    tokens: float = 0.0,
    recompute: bool = False,
    logit_rows: float = 0.0,
) -> Held:
    """Bytes of one process under ZeRO stage 0 to 3.

    weight_bytes: of a trained weight and its gradient. frozen_bytes: of one that is not. tokens: of
    the largest pass. logit_rows: rows of logits in memory at once (about two float32 copies).
    """
    frozen = shape.parameters - shape.trained
    weights = shape.trained * weight_bytes + frozen * (
        weight_bytes if frozen_bytes is None else frozen_bytes
    )
    gradients = shape.trained * weight_bytes
    states = shape.trained * (ADAM_BYTES + (MASTER_BYTES if weight_bytes < 4 else 0))
    activation_bytes = min(weight_bytes if frozen_bytes is None else frozen_bytes, 4.0)
    activation_bytes = max(activation_bytes, 2.0)
    per_layer = shape.layer_floats()
    kept = (
        shape.hidden * shape.layers + per_layer if recompute else per_layer * shape.layers
    ) * tokens * activation_bytes  # fmt: skip
    # A layer that computes and the next one that is fetched, or a table of the vocabulary.
    table = float(shape.vocabulary * shape.hidden)
    layers = 2 * max(shape.body, shape.parameters - 2 * table) / shape.layers
    sharded = stage >= 3 and world > 1
    return Held(
        weights / (world if stage >= 3 else 1),
        gradients / (world if stage >= 2 else 1),
        states / (world if stage >= 1 else 1),
        kept + 2 * 4.0 * shape.vocabulary * logit_rows,
        max(layers, table) * activation_bytes if sharded else 0.0,
    )


def sent(
    shape: Shape,
    *,
    stage: int,
    world: int,
    weight_bytes: float,
    passes: int = 1,
    readings: int = 2,
) -> float:
    """Bytes that a process sends in an optimiser step.

    passes: micro-batches of the step. readings: times a pass gathers sharded weights (forward and
    backward, and once more for a reference).
    """
    if world == 1:
        return 0.0
    share = (world - 1) / world
    gradients = shape.trained * weight_bytes * share
    weights = shape.parameters * weight_bytes * share
    if stage >= 3:
        return passes * (readings * weights + gradients)
    if stage == 2:  # a reduction of each micro-batch, then the new weights
        return passes * gradients + shape.trained * weight_bytes * share
    return 2 * gradients
