#!/usr/bin/env bash
# Everything that takes a GPU, in one command, on a machine that has one, torch and nvcc:
#
#     tests/gpu_check.sh OUTDIR [build] [test] [sanitizer] [bench]
#
# Without stages all of them, in this order; the extension is built first in any case, since what is
# installed may be older than the checkout (compiling nothing that has not changed). It goes into
# build/gpu-check, not into the environment. Needs no network and no rights; takes at most ten
# minutes, because every command has a limit of its own (where a call may not last as long, run
# `build test` and `sanitizer bench` apart). Logs and JSON go to OUTDIR, and to its
# summary.txt what is printed last. A stage that fails does not keep the next from running.
# Exit status: 0, 1 where a stage failed, 2 where there is nothing to run on.
# shellcheck disable=SC2329 # stages are called by name
set -uo pipefail

usage() {
  echo "usage: tests/gpu_check.sh OUTDIR [build] [test] [sanitizer] [bench]" >&2
  exit 2
}

(($#)) || usage
case $1 in
-* | build | test | sanitizer | bench) usage ;;
esac
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
stages=("$@")
((${#stages[@]})) || stages=(build test sanitizer bench)
for stage in "${stages[@]}"; do
  case $stage in
  build | test | sanitizer | bench) ;;
  *) usage ;;
  esac
done

cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
site=$PWD/build/gpu-check/site

# One line that says why there is nothing to run on, and exit status 2; else the architectures.
arches=$(
  "$python" - <<'END'
import shutil
import sys
from pathlib import Path


def stop(reason):
    print(f"gpu_check: {reason}", file=sys.stderr)
    sys.exit(2)


try:
    import torch
except ImportError:
    stop(f"{sys.executable} has no torch")
if not torch.cuda.is_available():
    stop("there is no GPU: torch.cuda.is_available() is false")
from torch.utils.cpp_extension import CUDA_HOME
nvcc = shutil.which("nvcc") or (CUDA_HOME and shutil.which(str(Path(CUDA_HOME, "bin", "nvcc"))))
if not nvcc:
    stop("there is no nvcc: put it on PATH or set CUDA_HOME")
found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
print(";".join(f"{major}.{minor}" for major, minor in sorted(found)))
END
) || exit 2

export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arches}
export FUSEDRNN_CUDA=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=Agg PYTHONUNBUFFERED=1
# The installed package goes before the checkout's, which has no compiled half.
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
# Batches of the workloads are synthetic where there is no data; nothing is to be fetched.
export FUSEDRNN_DATA_URL=file:///nowhere

limited() {
  timeout --kill-after=10 "$@"
}

# Python as the stages see it: not from the checkout, whose own package would come first.
installed() {
  (cd / && "$python" -c "$1")
}

# Compiled objects stay in build/, so that a second time takes seconds.
build() {
  rm -rf "$site"
  limited 140 "$python" -m pip install --no-index --no-build-isolation --no-deps --target "$site" \
    -v . || return
  installed 'from fusedrnn import _binary; print(info := _binary.build_info()); assert info["cuda"]'
}

# On several workers where pytest can: the tests wait for the host far more than for the GPU. An
# interrupt lets it say what it has found so far, so what matters most comes first. The second run is
# of what the plan would leave to cuDNN: float64, projections and half precision on our own kernels.
run_tests() {
  local workers=() pytest failed=0
  "$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
  pytest=("$python" -m pytest -q -rfE --device cuda -p no:cacheprovider "${workers[@]}")
  limited --signal=INT 130 "${pytest[@]}" tests/test_cuda.py tests/test_layers.py \
    tests/test_autograd.py tests/test_regressions.py tests || failed=1
  FUSEDRNN_CUDA_KERNEL=stepwise limited --signal=INT 40 "${pytest[@]}" tests/test_layers.py \
    -k "flags" || failed=1
  return "$failed"
}

# Kernels of ours alone, but for initcheck, which has to see who wrote what they read; there the
# reports that concern ours decide. Each allocation is the device's own: a cache would hide a read
# beyond one.
sanitize() {
  local tool=$1 filter=(--kernel-regex kns=fusedrnn)
  [[ $tool == initcheck ]] && filter=(--print-limit 0)
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 80 compute-sanitizer --tool "$tool" "${filter[@]}" \
    --error-exitcode 99 "$python" tests/cuda_core.py --seconds 60
}

sanitizer() {
  local tool status failed=0 pids=() tools=(memcheck racecheck initcheck synccheck)
  if ! command -v compute-sanitizer >/dev/null; then
    echo "there is no compute-sanitizer on PATH"
    return 1
  fi
  for tool in "${tools[@]}"; do
    sanitize "$tool" >"$out/sanitizer-$tool.log" 2>&1 &
    pids+=($!)
  done
  for i in "${!tools[@]}"; do
    tool=${tools[i]}
    wait "${pids[i]}"
    status=$?
    if [[ $tool == initcheck && $status == 99 ]] &&
      ! awk '/Uninitialized/ { near = 4 } near-- > 0 && /fusedrnn/ { ours = 1 } END { exit !ours }' \
        "$out/sanitizer-$tool.log"; then
      echo "initcheck: reports of other kernels than ours"
      status=0
    fi
    echo "$tool: exit status $status, $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' \
      "$out/sanitizer-$tool.log" | tail -1)"
    ((status == 0)) || failed=1
    cat "$out/sanitizer-$tool.log" >>"$out/sanitizer-all.log"
    rm "$out/sanitizer-$tool.log"
  done
  cat "$out/sanitizer-all.log"
  rm "$out/sanitizer-all.log"
  return "$failed"
}

bench() {
  local failed=0
  limited 130 "$python" benchmarks/gpu.py --out "$out" --seconds 100 || failed=1
  limited 55 "$python" benchmarks/gpu_tiles.py --out "$out" --seconds 40 || failed=1
  return "$failed"
}

summary=$out/summary.txt
"$python" -c 'import torch
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda,
      "cuDNN", torch.backends.cudnn.version())' >"$summary"
echo "architectures $TORCH_CUDA_ARCH_LIST, commit $(git describe --always --dirty 2>/dev/null)" >>"$summary"
failures=0

# One stage, its output in OUTDIR/STAGE.log, its last telling line in the summary.
stage() {
  local name=$1 function=$2 telling=$3 started=$SECONDS word=passed
  echo "--- $name"
  if ! "$function" >"$out/$name.log" 2>&1; then
    word=FAILED
    failures=$((failures + 1))
    tail -30 "$out/$name.log"
  fi
  {
    echo "$name: $word in $((SECONDS - started)) s"
    grep -hE "$telling" "$out/$name.log" | head -60 | sed 's/^/    /'
  } >>"$summary"
}

wanted() {
  [[ " ${stages[*]} " == *" $1 "* ]]
}

stage build build "^\{'version'|error:"
if installed 'import fusedrnn' 2>/dev/null; then
  wanted test && stage test run_tests '^(FAILED|ERROR) |^[0-9]+ (passed|failed)|^=+ .*(passed|failed)'
  wanted sanitizer && stage sanitizer sanitizer '^(mem|race|init|sync)check: |^there is no'
  wanted bench && stage bench bench '^(met|MISSED|grid|errors|geometric|slower|left out|[A-Z]+ (for|back)ward)'
else
  echo "nothing else was run: the build does not import" >>"$summary"
fi

echo
cat "$summary"
echo "logs and figures: $out"
exit $((failures > 0))
