"""Learning from what people say: blind votes in the arena, thumbs at a chat page, one log format.

Importing this package imports neither torch nor gradio.
"""

from __future__ import annotations
