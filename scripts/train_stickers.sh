#!/usr/bin/env bash
# Trains a model of stickers from its seed to its end, as the packaged one was trained:
# `bash scripts/train_stickers.sh OUT [HOURS]`, with HOURS (2 by default) on two cores that compute in
# bfloat16. The same command goes on after an interruption. Variables: PROCESSES (2); OBJECTS and
# VIDEO, further options of either recipe, as "--set teacher=0".
set -euo pipefail
out=${1:-}
hours=${2:-2}
if [[ -z "$out" || ! "$hours" =~ ^[0-9]+(\.[0-9]+)?$ ]]; then
  echo "usage: scripts/train_stickers.sh OUT [HOURS]: a folder, and a number such as 2 or 0.5" >&2
  exit 2
fi
python=${PYTHON:-python}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=passive

steps() { awk -v hours="$hours" -v each="$1" 'BEGIN { n = int(hours * each); print n < 20 ? 20 : n }'; }
set_steps() { # STAGE EACH: steps an hour, with a warm-up of at most a tenth of them
  local n
  n=$(steps "$2")
  echo "--set $1.steps=$n --set $1.warmup=$((n < 1000 ? n / 10 : 100))"
}
train() { # RECIPE FOLDER OPTIONS...
  local recipe=$1 folder=$2
  shift 2
  "$python" -m torch.distributed.run --nproc-per-node "${PROCESSES:-2}" --master-port "${PORT:-29512}" \
    -m efficientsam3 distill --recipe "$recipe" --out "$folder" "$@"
}

precision=()
if grep -q -E 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
  precision=(--set objects.precision=bf16-mixed --set finer.precision=bf16-mixed)
fi
# shellcheck disable=SC2046,SC2086
train stickers-objects "$out/objects" "${precision[@]}" --set text.steps=2500 \
  $(set_steps objects 950) $(set_steps finer 500) --set finer.lr=8e-4 ${OBJECTS:-}
# shellcheck disable=SC2046,SC2086
train stickers-video "$out/video" --set model="$out/objects/calibrate/model" --set stills=8 \
  $(set_steps clicks 400) $(set_steps memory 100) $(set_steps perceiver 50) \
  --set length='4,8' --set growth="$(steps 100)" ${VIDEO:-}
echo "the model: $out/video/memory/model; with a Perceiver memory: $out/video/perceiver/model"
