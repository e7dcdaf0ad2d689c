"""A finished policy as what servers read: one module a format, one command for all."""
