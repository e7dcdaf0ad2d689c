"""Which tokens a masked model is to fill in, and what it sees of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs

from align.config import load_config
from align.groups import TokenGroup
from align.train.batches import filler
from align.train.masked_lm import MaskedModule, MaskedPolicy, chosen, hidden_tokens


class Words:
    """A tokenizer of 1,000 entries."""

    mask_token_id, pad_token_id = 999, 998

    def __len__(self):
        return 1000


def config(**changes):
    loaded = load_config("pretrain", [*runs.SMOKE, "--pretrain.arch", "bert"])
    for name, value in changes.items():
        setattr(loaded.pretrain, name, value)
    return loaded


def row(n, draw=0):
    ids = [i % 900 for i in range(n)]
    return TokenGroup(ids[:1], [ids[1:]], extras={"draw": [float(draw)]})


def test_shares_of_the_paper():
    """Of 200,000 tokens 15 % are chosen; of those 80 % hidden, 10 % swapped, 10 % shown."""
    group = row(200_001)
    where, shown = hidden_tokens(group, config(), Words())
    own = torch.tensor(group.prompt_ids + group.completions[0])[where]
    assert len(where) / 200_000 == pytest.approx(0.15, abs=0.004)
    assert float((shown == 999).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float((shown == own).float().mean()) == pytest.approx(0.1, abs=0.01)
    swapped = shown[(shown != 999) & (shown != own)]
    assert float(swapped.float().mean()) == pytest.approx(499.5, abs=25)  # any token alike
    assert 0 not in where  # the context is never predicted


def test_the_choice_follows_from_row_and_seed():
    same = [chosen(row(300, draw=4), config())[0] for _ in "ab"]
    assert same[0] == same[1]
    assert same[0] != chosen(row(300, draw=5), config())[0]
    other = config()
    other.train.args["seed"] = 7
    assert same[0] != chosen(row(300, draw=4), other)[0]


def test_a_row_has_at_least_one_and_a_filler_none():
    rare = config(mask_probability=1e-6)
    assert all(len(chosen(row(5, draw=i), rare)[0]) == 1 for i in range(20))
    assert chosen(filler(), rare)[0] == []


@pytest.fixture(scope="module")
def policy():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = BertConfig(vocab_size=1000, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    found = MaskedPolicy.__new__(MaskedPolicy)
    found.module, found.tokenizer = MaskedModule(BertForMaskedLM(shape).eval()), Words()
    found.config, found.layout = config(), "plain"
    return found


def test_log_probs_are_those_of_the_models_own_logits(policy):
    groups = [row(40), row(25), row(33, draw=2)]
    batch = policy.collate(groups)
    with torch.no_grad():
        found = policy.module(batch)["logps"]
        mask = (batch.segment_ids >= 0).long()
        logits = policy.module.lm(input_ids=batch.input_ids, attention_mask=mask).logits
    expected, at = [], 0
    for r, group in enumerate(groups):
        own = torch.tensor(group.prompt_ids + group.completions[0])
        where, shown = hidden_tokens(group, policy.config, policy.tokenizer)
        assert torch.equal(batch.input_ids[r, where], shown)
        expected.append(logits[r, where].log_softmax(-1)[range(len(where)), own[where]])
        at += len(where)
    assert len(found) == at == batch.num_tokens
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def test_neither_padding_nor_the_batch_changes_a_row(policy):
    with torch.no_grad():
        alone = policy.module(policy.collate([row(25)]))["logps"]
        beside = policy.module(policy.collate([row(60), row(25), filler()]))["logps"]
    torch.testing.assert_close(beside[-len(alone) :], alone, atol=1e-5, rtol=0)
