"""The steps taken do not depend on how a batch is cut: micro-batches, accumulation, token budget.

Plain SGD, so that a weight's change is the gradient itself: two cuts agree to rounding, and a
mistake in a divisor shows as a factor. Ranks are in tests/distributed.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs

SGD = ("--train.optim", "sgd", "--train.learning_rate", 0.5, "--train.max_grad_norm", 0,
       "--train.max_steps", 3, *runs.CONSTANT)  # fmt: skip
# Three steps of 8 from about 21 examples: the last step is not full.
CUTS = {
    "1x8": ("--train.per_device_train_batch_size", 8),
    "8x1": ("--train.per_device_train_batch_size", 1, "--train.gradient_accumulation_steps", 8),
    "budget": ("--train.per_device_train_batch_size", 8, "--train.max_tokens_per_batch", 200),
}


@functools.cache
def moved(method: str, cut: str, *extra: object, wide: bool = False) -> dict[str, torch.Tensor]:
    """How far each weight is from where it started (for a new head: from zero). wide: float64."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        if wide:
            patch.setattr("align.policy_loading.dtype_of", lambda config: torch.float64)
        folder = runs.train(method, Path(place) / "run", *SGD, *CUTS[cut], *extra)
        after = runs.weights(folder)
    assert {x.dtype for x in after.values()} == {torch.float64 if wide else torch.float32}
    start = runs.load_file(Path(runs.base()) / "model.safetensors")
    return {
        name: tensor.double() - start.get(name.partition(":")[2], torch.zeros(())).double()
        for name, tensor in after.items()
    }


def agree(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    """Two sets of changes are the same up to a share of their size."""
    assert a.keys() == b.keys()
    size = torch.stack([x.norm() for x in a.values()]).norm()
    gap = torch.stack([(a[n] - b[n]).norm() for n in a]).norm()
    assert size > 1e-3  # something was learned
    assert gap <= tolerance * size


METHODS = [
    pytest.param("pretrain", (), id="pretrain"),
    pytest.param("sft", (), id="sft"),
    pytest.param("dpo", (), id="dpo-sigmoid"),
    pytest.param("dpo", ("--dpo.loss_type", "ipo"), id="dpo-ipo"),
    pytest.param("orpo", (), id="orpo"),
]


@pytest.mark.parametrize("cut", ["8x1", "budget"])
@pytest.mark.parametrize(("method", "extra"), METHODS)
def test_float64_steps_do_not_depend_on_the_cut(method, extra, cut):
    whole = moved(method, "1x8", *extra, wide=True)
    agree(whole, moved(method, cut, *extra, wide=True), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["8x1", "budget"])
@pytest.mark.parametrize(
    ("method", "extra"),
    [
        pytest.param("sft", ("--sft.packing", "true"), id="sft-packed"),
        pytest.param("reward", (), id="reward"),
        pytest.param("dpo", ("--policy.layout", "plain"), id="dpo-plain"),
        pytest.param("dpo", ("--policy.reference", "cached"), id="dpo-cached"),
        pytest.param("dpo", ("--policy.lora", "{r: 4}"), id="dpo-lora"),
    ],
)
def test_float32_steps_do_not_depend_on_the_cut(method, extra, cut):
    whole = moved(method, "1x8", *extra)
    agree(whole, moved(method, cut, *extra), 2e-5)


def test_packing_changes_no_step():
    plain = moved("sft", "1x8")
    agree(plain, moved("sft", "1x8", "--sft.packing", "true"), 2e-5)


@pytest.mark.parametrize("cut", ["8x1", "budget"])
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param((), id="separate"),
        pytest.param(("--ppo.critic", "shared", "--ppo.score_at", "after_eos"), id="shared-after"),
        pytest.param(("--ppo.ptx_coef", 0.5, "--ppo.entropy_coef", 0.01), id="ptx-entropy"),
    ],
)
def test_ppo_steps_do_not_depend_on_the_cut(extra, cut):
    # One rollout of 8 completions, three passes over it: it is sampled before the first step, so
    # every cut learns from the same tokens.
    one = ("--ppo.ppo_epochs", 3, "--ppo.num_minibatches", 1, *extra)
    whole = moved("ppo", "1x8", *one)
    agree(whole, moved("ppo", cut, *one), 1e-4)


def test_the_comparison_sees_a_wrong_divisor():
    """A batch of 4 is another step than a batch of 8: the tolerance is not that wide."""
    whole = moved("sft", "1x8")
    half = moved("sft", "1x8", "--train.per_device_train_batch_size", 4)
    with pytest.raises(AssertionError):
        agree(whole, half, 1e-2)
