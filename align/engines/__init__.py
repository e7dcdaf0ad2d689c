"""Inference engines that are not ours: where they are installed, how they start and stop."""
