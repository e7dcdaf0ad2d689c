"""The launch is what it looks like, and norms over whole and divided gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from align import distributed
from align.config import UserError


def accelerator(engine: str, rank: int = 0) -> SimpleNamespace:
    return SimpleNamespace(process_index=rank, distributed_type=SimpleNamespace(value=engine))


@pytest.fixture
def ranks(monkeypatch):
    """Pretend to be one of several ranks that report these numbers."""

    def pretend(here: int, world: int, reported: list[int]) -> None:
        monkeypatch.setenv("RANK", str(here))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setattr(distributed, "gather_objects", lambda value: reported)
        monkeypatch.setattr(distributed, "rank", lambda: reported[here])

    return pretend


def test_a_launch_that_is_what_it_says_passes(ranks):
    distributed.check_launch(accelerator("NO"))
    ranks(1, 2, [0, 1])
    distributed.check_launch(accelerator("MULTI_CPU", 1))


def test_ranks_that_all_think_they_are_rank_zero_are_refused(ranks):
    ranks(1, 2, [0, 0])
    with pytest.raises(UserError, match=r"started ranks 0 to 1, and the trainer's are \[0, 0\]"):
        distributed.check_launch(accelerator("MULTI_CPU"))


def test_ranks_that_never_met_are_refused(ranks):
    ranks(0, 2, [0])
    with pytest.raises(UserError, match=r"and the trainer's are \[0\]"):
        distributed.check_launch(accelerator("NO"))


@pytest.mark.parametrize(
    ("name", "asked"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")]
)
def test_an_engine_that_became_plain_ddp_is_refused(monkeypatch, name, asked):
    monkeypatch.setenv(name, "true")
    distributed.check_launch(accelerator(asked))
    with pytest.raises(UserError, match=f"asked for {asked} and the trainer has MULTI_GPU"):
        distributed.check_launch(accelerator("MULTI_GPU"))


def test_a_norm_is_that_of_all_gradients_together():
    parts = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]]), torch.tensor([12.0])]
    assert distributed.total_norm(parts) == pytest.approx(13.0)
    assert distributed.total_norm([]) == 0.0
