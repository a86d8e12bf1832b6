"""Programs that stand in for those that gpu_check.sh calls, where there is no GPU: each passes,
fails or hangs as the variable FATE says."""

from __future__ import annotations

# Runs what reads reports, and pytest where REAL_PYTEST says so; for all else it notes what it was
# asked, and FATE, as in "pip=fail cuda_core=hang", decides how that ends. A hang ignores
# interrupts, as a process does that waits for a GPU.
STAND_IN = r"""#!/usr/bin/env bash
echo "$FUSEDRNN_CUDA_KERNEL:$*" >>"$CALLS"
meets() {
  case " $FATE " in
  *" $1=fail "*) echo "$1 broke" && exit 1 ;;
  *" $1=part "*) echo "$1: 3 left out for time" && exit 3 ;;
  *" $1=hang "*) echo "begin 7 the problem of $1" && trap '' INT && sleep 60 ;;
  esac
}
case "$*" in
tools/gpu_machine.py) echo 9.0 ;;
tools/gpu_reports.py*) exec "$REAL" "$@" ;;
"-m pip "*) meets pip && mkdir -p build/gpu-check/site ;;
*_binary.build_info*) meets import && echo "{'version': '0'}" ;;
*"import xdist"*) [[ ! $REAL_PYTEST ]] ;;
"-m pytest "*)
  [[ $REAL_PYTEST ]] && exec "$REAL" "$@"
  echo "tests/test_x.py::test_y PASSED"
  meets pytest
  echo "1 passed in 0.10s"
  ;;
*get_device_name*) echo "a GPU, torch" ;;
"-m benchmarks "* | */*.py*)
  name=${1##*/} && name=${name%.py}
  [[ $1 == -m ]] && name=${3/-/_}
  meets "$name"
  [[ $name == cuda_core ]] && echo "$CORE"
  echo "$name: all ran"
  ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
tool=$2
case " $FATE " in
*" $tool=part "*) echo "begin 0 a problem" && exit 3 ;;
*" $tool=hang "*) echo "begin 4 the problem of $tool" && trap '' INT && sleep 60 ;;
*" $tool=refused "*) echo "========= Error: Device not supported" && exit 1 ;;
*" $tool=found "*) echo "$REPORT" && exit 99 ;;
esac
echo "========= ERROR SUMMARY: 0 errors"
"""
NCU = """#!/usr/bin/env bash
case "$FATE:$*" in
*ncu=denied*) echo "==ERROR== ERR_NVGPUCTRPERM - no permission" && exit 1 ;;
*ncu=hang*--export*) trap '' INT && sleep 60 ;;
*--import*)
  echo '"ID","Kernel Name","gpu__time_duration.sum"'
  echo '"","","us"'
  echo '"0","void fusedrnn::cuda::recurrence_forward<(int)5>(fusedrnn::cuda::Forward)","33.50"'
  ;;
*) echo "gpu_profile: all ran" ;;
esac
"""
# Notes the limit and goes on without one.
TIMEOUT = """#!/usr/bin/env bash
echo "$3" >>"$LIMITS"
exec "${@:4}"
"""
