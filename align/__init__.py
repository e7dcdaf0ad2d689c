"""align: the classical alignment pipeline under plain `accelerate launch`.

Importing this package imports nothing heavy: every part is imported where it is used.
"""

__version__ = "0.1.0"
