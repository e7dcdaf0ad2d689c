"""What a scorer runs: a body, and its head at one place of each row."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from align.heads import base_of, find_head


class LastToken(nn.Module):
    """A sequence classifier that is read at given positions, whatever fills its rows.

    model: the transformers model, without peft around it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._reads(base_of(model), find_head(model)[1])

    def _reads(self, body: Any, head: nn.Linear) -> None:
        """Note the parts that forward calls; in a tuple they are not registered a second time."""
        self._parts = (body, head)
        self._takes_positions = "position_ids" in inspect.signature(body.forward).parameters

    @property
    def head(self) -> nn.Linear:
        """The linear layer that gives the scores."""
        return self._parts[1]

    def forward(self, ids: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """Outputs (R, heads), float32, of rows (R, T) at the positions last (R,)."""
        rows, width = ids.shape
        (body, head), extra = self._parts, {}
        if self._takes_positions:
            extra["position_ids"] = torch.arange(width, device=ids.device).expand(rows, width)
        output = body(input_ids=ids, attention_mask=mask, use_cache=False, **extra)
        hidden = output.last_hidden_state[torch.arange(rows, device=ids.device), last]
        return head(hidden.to(head.weight.dtype)).float()
