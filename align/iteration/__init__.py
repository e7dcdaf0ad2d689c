"""Training on what the policy itself writes: best of n, and rounds of it.

Importing this package imports no torch.
"""

from __future__ import annotations
