"""The public methods of trl's client that `Nccl` calls; they change without notice."""

from __future__ import annotations

import inspect

import pytest


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("__init__", ["self", "base_url", "host", "server_port", "group_port",
                      "connection_timeout"]),
        ("init_communicator", ["self", "device"]),
        ("weight_update", ["self"]),
        ("update_named_param", ["self", "name", "weights"]),
        ("close_communicator", ["self"]),
    ],
)  # fmt: skip
def test_trls_client_has_what_is_used(method, parameters):
    from trl.generation.vllm_client import VLLMClient

    found = inspect.signature(getattr(VLLMClient, method))
    assert list(found.parameters) == parameters


def test_weights_go_through_it_in_one_update(monkeypatch):
    """A recording client instead of trl's, which needs CUDA: names and values arrive whole."""
    import contextlib

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from align.train import vllm_nccl

    lm = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32,
                    num_attention_heads=2, num_key_value_heads=2)
    )  # fmt: skip
    seen: list[object] = []

    class Client:
        @contextlib.contextmanager
        def weight_update(self):
            seen.append("begin")
            yield
            seen.append("end")

        def update_named_param(self, name, weights):
            seen.append((name, weights.clone()))

    class Policy:
        module = type("M", (), {"lm": lm})

    class Trainer:
        policy = Policy
        settings = type("S", (), {"rollout": type("R", (), {"gather_chunk_mb": 1})})

    from pathlib import Path

    push = vllm_nccl.Nccl(Trainer, Path("nowhere"))  # type: ignore[arg-type]
    push.named("policy", "stem", url="http://127.0.0.1:1")
    push._client = Client()
    push.collect()
    assert push.error is None
    assert (seen[0], seen[-1]) == ("begin", "end")
    sent = dict(seen[1:-1])
    assert sent.keys() == {name for name, _ in lm.named_parameters()}
    assert all(torch.equal(sent[name], p) for name, p in lm.named_parameters())
