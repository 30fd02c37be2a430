#!/usr/bin/env bash
# The parts of accelerator.py in four stages of less than 5 minutes, for a GPU that is lent by the
# minute: `bash benchmarks/on_device.sh one`, then `two`, `three` and `four`.
#
# Parts that compile long do so side by side (16 cores are not too many) and measure in turn. A part
# that overruns its limit is ended; so is one that would overrun its stage. What was found until
# then is in $OUT/accelerator.jsonl (default: results/accelerator).
# PYTHON names the interpreter (default: python3), EXAMPLES the folder of the examples that were
# carried (default: runs/examples).
set -u
cd "$(dirname "$0")/.." || exit 1
export OUT=${OUT:-results/accelerator}
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
# Processes share the memory: none takes most of it at its start.
export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
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
  one) # the train step; parts of one program share its compilation by the cache
    if command -v nvidia-smi > /dev/null; then
      nvidia-smi --query-gpu=name,memory.total,clocks.sm,power.limit --format=csv,noheader
    fi
    part 210 mfu --only=0,2,4 &
    part 210 mfu --only=5,9,8 &
    JAX_PLATFORMS=cuda,cpu part 210 parity &
    part 60 ceiling &
    wait
    part 90 trace --only=0 &
    part 90 mfu --flags=exact --only=0 &
    part 90 repeat &
    wait
    # Compiled anew, in another process: the parameters must be the same bit for bit.
    JAX_ENABLE_COMPILATION_CACHE=false part 60 repeat
    ;;
  two) # what compares with others
    part 200 torch --only=6 &
    part 200 torch --only=3,4,5 &
    for each in 0 1 2; do part 200 decode --only=$each & done
    part 200 attention &
    part 60 embed &
    wait
    ;;
  three) # one after another: what has the host's time in it
    part 90 doctor
    part 90 loop
    part 280 study
    ;;
  four) # what compiles longest, with base for comparison; last what has the host's time in it
    part 230 mfu --only=6 &
    part 230 mfu --only=7 &
    part 230 mfu --only=10 &
    part 120 mfu --only=0 &
    JAX_THREEFRY_GPU_KERNEL_LOWERING=0 part 230 mfu --only=9 &
    part 200 decode --only=1 &
    part 200 torch --only=4 &
    wait
    part 90 mfu --flags=tuned --only=0 # times kernels as it compiles: alone
    part 60 trace --only=6
    ;;
  *)
    echo "usage: bash benchmarks/on_device.sh one|two|three|four" >&2
    exit 2
    ;;
esac
