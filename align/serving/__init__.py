"""What stands between users and a served model: checks, logs, drift."""
