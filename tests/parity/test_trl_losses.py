"""Our preference losses against trl's, through trl's public methods alone.

DPO goes through `DPOTrainer.compute_loss` on one padded batch of a small random Llama; CPO, SimPO
and ORPO through the public loss methods of their trainers. Where the two differ on purpose, a test
says by how much.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.logprobs import token_logps
from align.losses import dpo, orpo_odds

pytestmark = pytest.mark.parity

BETA = 0.3
WORDS = [f"w{i}" for i in range(40)]
PAIRS = [  # prompt, chosen, rejected, of unlike lengths
    ("w1 w2 w3", "w4 w5", "w6 w7 w8 w9"),
    ("w3", "w10 w11 w12 w13 w14", "w15"),
    ("w20 w21", "w22 w23 w24", "w25 w26"),
    ("w30 w1 w2 w5", "w31", "w32 w33 w34 w35 w36"),
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def models(tokenizer):
    """A policy and a reference that differ; both small random Llamas in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # log-probs far enough apart for the losses to differ
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config), LlamaForCausalLM(config)


def summed_logps(model, batch) -> torch.Tensor:
    """Summed completion log-probs per row, through our own chunked path."""
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    mask = batch["completion_mask"][:, 1:].bool()
    logps, _ = token_logps(
        hidden[:, :-1][mask], batch["input_ids"][:, 1:][mask], model.lm_head, chunk_tokens=5
    )
    row = mask.nonzero()[:, 0]
    return torch.zeros(mask.shape[0]).index_add(0, row, logps)


def gradient_norm(loss: torch.Tensor, model) -> float:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()


@pytest.mark.parametrize(
    ("theirs", "ours", "smoothing"),
    [
        ("sigmoid", "sigmoid", 0.0),
        ("hinge", "hinge", 0.0),
        ("ipo", "ipo", 0.0),
        ("robust", "robust", 0.1),
        ("exo_pair", "exo", 0.1),
        ("sppo_hard", "sppo", 0.0),
        ("apo_zero", "apo_zero", 0.0),
        ("apo_down", "apo_down", 0.0),
        ("aot", "aot", 0.1),
        ("aot_unpaired", "aot_unpaired", 0.1),
        ("discopop", "discopop", 0.0),
    ],
)
def test_dpo_loss_and_gradient_equal_trl(
    theirs: str, ours: str, smoothing: float, tokenizer, models, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    policy, reference = (copy.deepcopy(m) for m in models)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            loss_type=theirs,
            beta=BETA,
            label_smoothing=smoothing,
            per_device_train_batch_size=len(PAIRS),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
            report_to="none",
        ),
        train_dataset=datasets.Dataset.from_list(
            [dict(zip(("prompt", "chosen", "rejected"), p, strict=True)) for p in PAIRS]
        ),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected_norm = gradient_norm(expected, policy)

    lengths = batch["completion_mask"].sum(1).chunk(2)
    chosen, rejected = summed_logps(policy, batch).chunk(2)
    with torch.no_grad():
        ref_chosen, ref_rejected = summed_logps(reference, batch).chunk(2)
    loss = dpo(
        chosen,
        rejected,
        ref_chosen,
        ref_rejected,
        beta=BETA,
        loss_type=ours,
        label_smoothing=smoothing,
        lengths_chosen=lengths[0],
        lengths_rejected=lengths[1],
    ).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradient_norm(loss, policy) == pytest.approx(expected_norm, rel=1e-4)


CHOSEN = torch.tensor([-4.0, -9.0, -1.5, -0.3])
REJECTED = torch.tensor([-5.0, -7.0, -2.5, -6.0])
LENGTHS = (torch.tensor([2, 5, 3, 1]), torch.tensor([4, 2, 2, 5]))


def trainer_state(**values) -> SimpleNamespace:
    """The attributes that trl's loss methods read from their trainer."""
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=BETA, **values)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_and_cpo_equal_trl(smoothing: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    state = trainer_state(alpha=0.0, label_smoothing=smoothing, simpo_gamma=0.5, loss_type="simpo")
    means = (CHOSEN / LENGTHS[0], REJECTED / LENGTHS[1])
    options = {
        "beta": BETA,
        "label_smoothing": smoothing,
        "lengths_chosen": LENGTHS[0],
        "lengths_rejected": LENGTHS[1],
    }
    expected, *_ = cpo.CPOTrainer.cpo_loss(state, *means)
    loss = dpo(CHOSEN, REJECTED, None, None, loss_type="simpo", gamma=0.5, **options)
    torch.testing.assert_close(loss, expected)

    state.loss_type = "sigmoid"
    expected, *_ = cpo.CPOTrainer.cpo_loss(state, CHOSEN, REJECTED)
    loss = dpo(CHOSEN, REJECTED, None, None, loss_type="cpo", cpo_alpha=0.0, **options)
    torch.testing.assert_close(loss, expected)


def test_orpo_odds_equal_trl() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    means = (CHOSEN / LENGTHS[0], REJECTED / LENGTHS[1])
    expected, _, _, _, mean_odds = orpo.ORPOTrainer.odds_ratio_loss(trainer_state(), *means)
    loss, log_odds = orpo_odds(*means)
    torch.testing.assert_close(-BETA * loss, expected)  # trl's is the negative, beta included
    torch.testing.assert_close(log_odds.mean(), mean_odds)


def test_orpo_differs_from_trl_at_certainty() -> None:
    """trl's log1mexp has no floor: a mean log-prob of 0 on both sides is NaN there."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    certain = torch.zeros(1)
    expected, *_ = orpo.ORPOTrainer.odds_ratio_loss(trainer_state(), certain, certain)
    assert expected.isnan().all()
    loss, _ = orpo_odds(certain, certain)
    torch.testing.assert_close(loss, torch.full((1,), 0.6931472))  # equal odds: ln 2


def test_discopop_differs_from_trl_where_trl_overflows() -> None:
    """trl multiplies exp(−βΔ) = inf by a gate of 0; ours takes the product in log space."""
    logits = torch.tensor([-200.0])
    gate = torch.sigmoid(logits / 0.05)
    assert (torch.exp(-logits) * gate).isnan().all()
    zero = torch.zeros(1)
    loss = dpo(logits, zero, zero, zero, beta=1.0, loss_type="discopop")
    torch.testing.assert_close(loss, torch.tensor([200.0]))
