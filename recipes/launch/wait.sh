#!/usr/bin/env bash
# Sourced by the scripts beside it.

# until_ended PID SIGNAL...: wait for a launcher's end, and meet these signals with SIGTERM to it,
# which it passes on: every rank then finishes its step and writes a checkpoint.
# Sets code, its exit code, and stopped, not empty after a signal.
until_ended() {
  launcher=$1 stopped=
  trap 'stopped=1; kill -TERM "$launcher" 2>/dev/null' "${@:2}"
  wait "$launcher"
  code=$?
  # A trap ends `wait` before the launcher has ended.
  while [ -n "$stopped" ] && kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher"
    code=$?
  done
}
