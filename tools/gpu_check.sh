#!/usr/bin/env bash
# What takes a GPU, a stage a call, on a machine that has one, torch and nvcc:
#
#     tools/gpu_check.sh OUT smoke|test|bench|sanitize|profile
#
#   smoke     5 min  each kernel once, named before it runs, then what a step of each costs
#   test      9 min  the tests whose subject is the same on every device, and those of a GPU alone
#   bench     9 min  layers, models and a grid of shapes beside cuDNN, each held to float64
#   sanitize  9 min  each kernel once under the four tools of compute-sanitizer
#   profile   9 min  hardware counters of three recurrences, by Nsight Compute
#
# In this order: smoke tells whether it builds, runs and ends, and what a step costs. A stage builds
# what has changed first, into build/gpu-check and not into the environment, and ends within its
# time, for which 16 cores were assumed: whatever would last longer is cut off. It needs no network
# and no rights. Logs and figures go to OUT, and what is printed to OUT/STAGE.txt.
#
# Its last line says how it ended, as does the exit status: 0 passed; 1 FAILED; 2 NOTHING TO RUN ON,
# the machine lacks something; 3 PARTIAL, what ran passed but something was cut off or left out;
# 64 for a call that is none.
# shellcheck disable=SC2329 # stages are called by name
set -uo pipefail

stage=${2-}
case $#:$stage in
2:smoke) budget=300 ;;
2:test | 2:bench | 2:sanitize | 2:profile) budget=540 ;;
*)
  echo "usage: tools/gpu_check.sh OUT smoke|test|bench|sanitize|profile" >&2
  exit 64
  ;;
esac
budget=${GPU_CHECK_SECONDS:-$budget} # the tests wait less long
grace=$((budget / 50 + 1))           # from an interrupt to a kill
SECONDS=0

mkdir -p "$1" || exit 64
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 64
python=${PYTHON:-python3}
site=$PWD/build/gpu-check/site
said=$out/$stage.txt
: >"$said"

say() {
  echo "$*" | tee -a "$said"
}

# The last line and the exit status; failures come before whatever else was found.
failed=() partial=() missing=()
finish() {
  local words="passed in $SECONDS s" status=0
  ((${#partial[@]})) && words="PARTIAL: $(printf '%s; ' "${partial[@]}")" status=3
  ((${#missing[@]})) && words="NOTHING TO RUN ON: $(printf '%s; ' "${missing[@]}")" status=2
  if ((${#failed[@]})); then
    words="FAILED: $(printf '%s; ' "${failed[@]}")" status=1
    ((${#partial[@]})) && words+="PARTIAL: $(printf '%s; ' "${partial[@]}")"
  fi
  say "logs and figures: $out"
  say "$stage: ${words%; }"
  exit "$status"
}

# So many seconds, or what the stage has left.
within() {
  local left=$((budget - 2 * grace - SECONDS))
  echo $((left < $1 ? left : $1))
}

# limited SECONDS COMMAND...; a command that an interrupt does not reach is killed. Status 124 or
# 137 where that was needed.
limited() {
  timeout --signal=INT --kill-after="$grace" "$@"
}

# conclude NAME SECONDS STATUS: what becomes of a command whose output is in OUT/NAME.log. 3 is the
# status by which our programs tell that they left something out.
conclude() {
  local log=$out/$1.log
  case $3 in
  0) ;;
  3) partial+=("$1: $(tail -n 1 "$log")") ;;
  124 | 137) partial+=("$1 was cut off after $2 s") ;;
  *) failed+=("$1: status $3, $(grep . "$log" | tail -n 1)") ;;
  esac
  return "$3"
}

# run NAME SECONDS COMMAND...
run() {
  local name=$1 seconds=$2
  shift 2
  if ((seconds < 1)); then
    partial+=("$name was not begun, no time was left")
    return 3
  fi
  limited "$seconds" "$@" >"$out/$name.log" 2>&1
  conclude "$name" "$seconds" $?
}

# telling NAME REGEX: the lines of a log that the reader should see.
telling() {
  [[ -f $out/$1.log ]] && grep -E "$2" "$out/$1.log" | head -n 80 | sed 's/^/    /' | tee -a "$said"
}

# Compiled objects stay in build/, so that the next stage's build takes seconds.
build() {
  local limit=200
  [[ $stage == smoke ]] && limit=150
  rm -rf "$site"
  if ! run build "$(within "$limit")" "$python" -m pip install --no-index --no-build-isolation \
    --no-deps --target "$site" -v .; then
    telling build 'error|fusedrnn: '
    return 1
  fi
  # Not from the checkout, whose own package would come first.
  run import "$(within 60)" env -C / "$python" -c 'from fusedrnn import _binary
print(info := _binary.build_info()); assert info["cuda"]' || return
  telling import "^{'version'"
}

smoke() {
  local limit bad
  limit=$(within 110)
  run cuda_core "$limit" "$python" tools/cuda_core.py --watch $((limit / 6)) \
    --seconds $((limit * 8 / 10))
  (($? >= 124)) && failed+=("cuda_core hung in $(grep '^begin ' "$out/cuda_core.log" | tail -n 1)")
  telling cuda_core '^(HUNG|FAILED|left out|cuda_core)'
  bad=$(sed -nE 's/^(HUNG|FAILED): FUSEDRNN_CUDA_TILE=([0-9]+) .*/\2/p' "$out/cuda_core.log" |
    paste -sd,)
  limit=$(within 150)
  run gpu_tiles "$limit" "$python" -m benchmarks gpu-tiles --out "$out" --without "$bad" \
    --seconds $((limit * 9 / 10))
  (($? >= 124)) && partial+=("the last was $(grep '^begin ' "$out/gpu_tiles.log" | tail -n 1)")
  telling gpu_tiles '^(tile|left out|gpu_tiles|[0-9]+: )'
}

# Named one by one: one that cannot be collected takes no other along. Several workers where pytest
# can, since the tests wait for the host far more than for the GPU; neighbours of a file, often
# equally long, go to different ones. The second run is of what the plan would leave to cuDNN:
# float64, projections and half precision on our own kernels.
run_tests() {
  local files options hang=$((budget / 6)) name unended
  files=(tests/cuda/test_cuda{,_accuracy,_hardware}.py
    tests/layers/test_{layers,autograd,regressions,forward,functional,cells,compile}.py)
  options=(-v -rfE --device cuda -p no:cacheprovider --continue-on-collection-errors
    -o "faulthandler_timeout=$hang")
  if "$python" -c 'import xdist' 2>/dev/null; then
    options+=(-n 8 --maxschedchunk=1)
  else
    say "there is no pytest-xdist: the tests run one after the other"
  fi
  # Eight workers share the cores: none of them starts a process of its own for each.
  export TORCHINDUCTOR_COMPILE_THREADS=1 OMP_NUM_THREADS=2
  run pytest $(($(within "$budget") * 7 / 8)) "$python" -m pytest "${options[@]}" "${files[@]}"
  FUSEDRNN_CUDA_KERNEL=stepwise run stepwise "$(within 60)" "$python" -m pytest "${options[@]}" \
    tests/layers/test_layers.py -k flags
  for name in pytest stepwise; do
    telling "$name" '^(FAILED|ERROR) |^[0-9]+ (passed|failed)|^=+ .*(passed|failed|error)'
    [[ -f $out/$name.log ]] || continue
    unended=$("$python" tools/gpu_reports.py tests "$out/$name.log") && continue
    say "$(head -n 80 <<<"$unended")"
    [[ $unended == HUNG* || $unended == FAILED* ]] && failed+=("${unended%%$'\n'*}")
  done
}

# Its own limit leaves a few seconds for the case under way; the figures are written as they come.
bench() {
  local limit
  limit=$(within 520)
  run gpu "$limit" "$python" -m benchmarks gpu --out "$out" --seconds $((limit * 9 / 10))
  (($? >= 124)) && partial+=("the last was: $(grep '^begin ' "$out/gpu.log" | tail -n 1)")
  telling gpu '^(met|MISSED|grid|errors|geometric|slower|left out|gpu:|[A-Z]+ (for|back)ward)'
}

# Kernels of ours alone, but for initcheck, which has to see who wrote what they read. Each
# allocation is the device's own: a cache would hide a read beyond one.
sanitize() {
  local tool limit line filter pids=() tools=(memcheck racecheck initcheck synccheck)
  if ! command -v compute-sanitizer >/dev/null; then
    missing+=("there is no compute-sanitizer on PATH")
    return
  fi
  limit=$(within 250)
  for tool in "${tools[@]}"; do
    filter=(--kernel-regex kns=fusedrnn)
    [[ $tool == initcheck ]] && filter=(--print-limit 0)
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$limit" compute-sanitizer --tool "$tool" \
      "${filter[@]}" --error-exitcode 99 "$python" tools/cuda_core.py \
      --seconds $((limit * 8 / 10)) >"$out/$tool.log" 2>&1 &
    pids+=($!)
  done
  for i in "${!tools[@]}"; do
    tool=${tools[i]}
    wait "${pids[i]}"
    line=$("$python" tools/gpu_reports.py sanitizer "$tool" $? "$out/$tool.log")
    case $? in
    0) ;;
    2) missing+=("$line") ;;
    3) partial+=("$line") ;;
    *) failed+=("$line") ;;
    esac
    say "    $line"
  done
}

profile() {
  if ! command -v ncu >/dev/null; then
    missing+=("there is no ncu on PATH")
    return
  fi
  local limit status page refusal
  limit=$(within 350)
  limited "$limit" ncu --clock-control none --kernel-name regex:recurrence --set full \
    --force-overwrite --export "$out/profile" "$python" tools/gpu_profile.py >"$out/ncu.log" 2>&1
  status=$?
  refusal=$(grep -m 1 -E 'ERR_NVGPUCTRPERM|Failed to initialize the profiler' "$out/ncu.log")
  if [[ $refusal ]]; then
    missing+=("ncu may not read the counters: $refusal")
    return
  fi
  conclude ncu "$limit" "$status"
  for page in raw details; do
    limited "$(within 60)" ncu --import "$out/profile.ncu-rep" --page "$page" --csv \
      >"$out/profile-$page.csv" 2>>"$out/ncu.log" || failed+=("ncu --page $page, see ncu.log")
  done
  run counters "$(within 60)" "$python" tools/gpu_reports.py counters "$out/profile-raw.csv"
  telling counters .
}

if ! arches=$("$python" tools/gpu_machine.py); then
  missing+=("${arches:-$python does not run}")
  finish
fi
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arches}
export FUSEDRNN_CUDA=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=Agg PYTHONUNBUFFERED=1
# The installed package goes before the checkout's, which has no compiled half.
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
# Batches of the workloads are synthetic where there is no data; nothing is to be fetched.
export FUSEDRNN_DATA_URL=file:///nowhere

say "$("$python" -c 'import torch
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda,
      "cuDNN", torch.backends.cudnn.version())')"
say "architectures $TORCH_CUDA_ARCH_LIST, commit $(git describe --always --dirty 2>/dev/null)"
build || finish
say "    built in $SECONDS s"
case $stage in
test) run_tests ;;
*) "$stage" ;;
esac
finish
