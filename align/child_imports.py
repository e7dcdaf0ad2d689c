"""What every stage imports: loaded once by the server of align.child, never by anyone else."""

import os

# deepspeed asks for its device when it is imported; there is only the CPU where stages are forked.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import align.train.base
import align.train.ppo  # noqa: F401
