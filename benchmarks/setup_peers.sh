#!/usr/bin/env bash
# Venvs of the peers, each with the versions it wants, under benchmarks/.venvs (ignored by git).
#   bash benchmarks/setup_peers.sh [trl112] [llamafactory] [swift] [datatrove]   (default: all)
# Torch first, as the wheel for this machine: on Linux without an NVIDIA GPU pip would otherwise
# take the CUDA build of several GB. TORCH=torch==2.13.0 and PYTHON=python3 can be given.
set -euo pipefail
cd "$(dirname "$0")"
TORCH=${TORCH:-torch==2.13.0}
PYTHON=${PYTHON:-python3}

make_venv() {
  local place=.venvs/$1
  [ -x "$place/bin/python" ] || "$PYTHON" -m venv "$place"
  "$place/bin/python" -m pip install -q "$TORCH"
}

trl112() {  # the last trl with PPO
  make_venv trl112
  .venvs/trl112/bin/python -m pip install -q trl==1.12.0 peft transformers==5.24.0 pandas
  .venvs/trl112/bin/python -c 'from trl.experimental.ppo import PPOTrainer'
}

llamafactory() {  # its CPU training needs neither images nor sound
  make_venv llamafactory
  .venvs/llamafactory/bin/python -m pip install -q llamafactory==0.9.5 "$TORCH"
  .venvs/llamafactory/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec || true
  # It imports torchaudio even where it reads text, and torchaudio has no build for this torch.
  touch "$(.venvs/llamafactory/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchaudio.py"
  .venvs/llamafactory/bin/python -c 'import llamafactory.train.tuner'
}

swift() {
  make_venv swift
  .venvs/swift/bin/python -m pip install -q ms-swift==4.6.0 "$TORCH"
  .venvs/swift/bin/python -c 'import swift'
}

datatrove() {  # cleaning only: no torch. Its hashing passes strings, which xxhash 4 refuses.
  [ -x .venvs/datatrove/bin/python ] || "$PYTHON" -m venv .venvs/datatrove
  .venvs/datatrove/bin/python -m pip install -q datatrove==0.10.1 ftfy orjson nltk spacy tokenizers regex "xxhash<4"
  .venvs/datatrove/bin/python -c 'import datatrove.pipeline.dedup, datatrove.pipeline.filters'
}

for peer in "${@:-trl112 llamafactory swift datatrove}"; do
  for name in $peer; do
    echo "== $name"
    "$name" || { echo "$name could not be installed here"; failed=1; }
  done
done
exit "${failed:-0}"
