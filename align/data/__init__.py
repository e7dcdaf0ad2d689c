"""Readers, cleaning, splitting and fitting of training data."""
