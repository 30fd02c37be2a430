#!/usr/bin/env bash
# The parts of accelerator.py in two stages of less than 5 minutes, for a GPU that is lent by the
# minute: `bash benchmarks/on_device.sh one`, then `bash benchmarks/on_device.sh two`.
#
# A part that overruns its limit is ended and the next begins; so is one that would overrun its
# stage. What was found until then is in $OUT/accelerator.jsonl (default: results/accelerator).
# PYTHON names the interpreter (default: python3), EXAMPLES the folder of the examples that were
# carried (default: runs/examples).
set -u
cd "$(dirname "$0")/.." || exit 1
export OUT=${OUT:-results/accelerator}
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2 XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-/tmp/accelerator_cache}
PYTHON=${PYTHON:-python3} EXAMPLES=${EXAMPLES:-runs/examples} STAGE_S=${STAGE_S:-285}
# Seconds, then the parts and options of accelerator.py.
part() {
  local limit=$1 left=$((STAGE_S - SECONDS))
  shift
  if [ "$left" -lt 10 ]; then
    echo "--- no time is left for: $*"
    return
  fi
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  echo "--- $SECONDS s: $* (at most $limit s)"
  timeout --kill-after=3 "$limit" "$PYTHON" benchmarks/accelerator.py "$@" \
    --examples="$EXAMPLES" ${REHEARSE:+--rehearse} 2>&1 | grep --line-buffered -v '^[WI][0-9]'
  local status=${PIPESTATUS[0]}
  case $status in
    0) ;;
    124 | 137) echo "--- ended after $limit s: $*" ;;
    *) echo "--- exit status $status: $*" ;;
  esac
}

case ${1:-} in
  one)
    if command -v nvidia-smi > /dev/null; then
      nvidia-smi --query-gpu=name,memory.total,clocks.sm,power.limit --format=csv,noheader
    fi
    part 25 ceiling
    part 50 doctor
    part 60 attention
    part 25 embed
    JAX_PLATFORMS=cuda,cpu part 45 parity
    part 120 mfu trace
    part 30 repeat
    # Compiled anew, in another process: the parameters must be the same bit for bit.
    JAX_ENABLE_COMPILATION_CACHE=false part 40 repeat
    ;;
  two)
    part 45 mfu --flags=exact --only=0
    part 60 mfu --flags=tuned --only=0
    part 75 decode
    part 75 torch
    part 45 loop
    part 120 study
    ;;
  *)
    echo "usage: bash benchmarks/on_device.sh one|two" >&2
    exit 2
    ;;
esac
