"""Bits of 200 random layers on a CPU, kept as hashes, so that a refactoring can be held to the
commit before: `save FILE` with that commit's fusedrnn on PYTHONPATH, then `check FILE` with yours.

A line of FILE is a case on an instruction set: its parameters, and the SHA-256 of each output and
gradient. Both verbs run every case on one thread and on two, which must agree. Compare only on the
same machine, with the same torch. Takes a minute on two idle cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

ISAS = ("baseline", "avx2", "avx512")
CELLS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
VARIES = "differs by threads"
DTYPES = ("float32", "float64", "bfloat16", "float16", "autocast")
LAYOUTS = ("plain", "plain", "packed", "batch_first", "unbatched", "strided")
SHAPES = (  # T, B, I, H: by what the plan in csrc/cpu does with them in float32
    (1, 1, 20, 24),  # one step, weights in place, no second thread
    (1, 40, 300, 200),  # one step of many rows
    (3, 5, 160, 272),  # few steps of few rows: in place both ways
    (4, 12, 40, 260),  # few steps: in place forward, packed backward
    (12, 1, 530, 520),  # few steps of a wide layer
    (12, 8, 40, 520),  # too many rows for that
    (6, 3, 170, 130),  # few rows: dW where torch wants it, in vectors of I or H
    (9, 7, 520, 70),  # gathers the columns of x
    (14, 6, 30, 290),  # gathers those of h
    (10, 18, 1100, 500),  # packs W_ih by chunk going back, rows of the batch to a thread
    (10, 6, 1100, 500),  # the same, hidden units to a thread
    (12, 1, 64, 150),  # hidden units to a thread: fewer rows than threads
    (8, 4, 128, 528),  # the same because W_hh overflows L2, both ways
    (6, 40, 65, 528),  # forward only
    (90, 9, 33, 64),  # several chunks, rows of the batch to a thread
    (70, 5, 30, 140),  # inference: chunks of 64 rows; training: of 256, of 128 without AVX-512
    (300, 2, 3, 17),  # many steps, vectors not filled
)


def cases() -> Iterator[dict[str, Any]]:
    """Each shape with each cell, for training and for inference; then 64 drawn freely."""
    rng = random.Random(0)
    known = [(shape, cell, use) for shape in SHAPES for cell in CELLS for use in (True, False)]
    for seed in range(200):
        sizes = tuple(n * rng.choice((1, 1, 3)) for n in (rng.randint(1, 40) for _ in "TBIH"))
        drawn = (sizes, rng.choice(CELLS), rng.random() < 0.6)
        free = seed >= len(known)
        sizes, cell, training = drawn if free else known[seed]
        c = {"seed": seed, "cell": cell, "step": free and seed % 3 == 0}  # step: of a cell module
        c |= dict(zip("TBIH", sizes, strict=True))
        c |= {"L": rng.randint(1, 3 if free else 1), "D": 2 if rng.random() < 0.3 else 1}
        c |= {"P": sizes[3] // 2 if cell == "LSTM" and rng.random() < 0.3 else 0}
        c |= {"L": 1, "D": 1, "P": 0} if c["step"] else {}
        c |= {"bias": rng.random() < 0.75, "states": rng.random() < 0.6}
        c |= {"layout": rng.choice(LAYOUTS if free else LAYOUTS[:3])}
        weights = (2, 2, 1, 1, 1) if free else (1, 0, 0, 0, 0) if training else (3, 1, 3, 1, 1)
        c |= {"dtype": rng.choices(DTYPES, weights)[0]}
        c |= {"scale": 8 if cell != "RNN_RELU" and rng.random() < 0.15 else 1}  # of the weights
        c |= {"grads": rng.choice(("all", "all", "weights", "data")) if training else "none"}
        yield c | {"used": rng.choice(("all", "all", "output", "states"))}


def setting(c: dict[str, Any]) -> tuple[nn.Module, Any, Any, dict[str, Any]]:
    """A case's module, input, initial states, and all that may get a gradient, by its name."""
    import fusedrnn  # in the process whose instruction set is chosen

    dtype = getattr(torch, "float32" if c["dtype"] == "autocast" else c["dtype"])
    T, B, H, D, layout, step = (c[name] for name in ("T", "B", "H", "D", "layout", "step"))
    kind, _, nonlinearity = c["cell"].partition("_")
    options = {"bias": c["bias"], "dtype": dtype}
    options |= {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    if not step:
        options |= {"num_layers": c["L"], "bidirectional": D == 2}
        options |= {"batch_first": layout == "batch_first"}
        options |= {"proj_size": c["P"]} if c["P"] else {}
    module = getattr(fusedrnn, kind + "Cell" * step)(c["I"], H, **options)
    torch.manual_seed(c["seed"])
    leaves = dict(module.named_parameters())
    for weight in leaves.values():
        nn.init.uniform_(weight, -c["scale"] / H**0.5, c["scale"] / H**0.5)
        weight.requires_grad_(c["grads"] in ("all", "weights"))

    def values(name: str, *shape: int) -> Tensor:
        drawn = torch.randn(shape, dtype=dtype, requires_grad=c["grads"] in ("all", "data"))
        leaves[name] = drawn
        return drawn

    rows, steps = () if layout == "unbatched" else (B,), () if step else (T,)
    shape = (*rows, *steps) if layout == "batch_first" else (*steps, *rows)
    gap = 2 if layout == "strided" else 1
    x: Any = values("x", *shape, gap * c["I"])[..., ::gap]
    if layout == "packed" and not step:
        lengths = torch.cat([torch.tensor([T]), torch.randint(1, T + 1, (B - 1,))])
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    layers = () if step else (c["L"] * D,)
    hx: Any = values("h0", *layers, *rows, c["P"] or H)
    if kind == "LSTM":
        hx = (hx, values("c0", *layers, *rows, H))
    return module, x, hx if c["states"] else None, leaves


def flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [tensor for result in results for tensor in flat(result)]


def bits(c: dict[str, Any], threads: int) -> dict[str, str]:
    """The hash of each result of a case, by its name."""
    torch.set_num_threads(threads)
    module, x, hx, leaves = setting(c)
    with torch.autocast("cpu", torch.bfloat16, enabled=c["dtype"] == "autocast"):
        results = flat(module(x, hx))
    found = {f"result {i}": result for i, result in enumerate(results)}
    if c["grads"] != "none":
        used = [result for result in results if result.requires_grad]
        if not c["step"] and c["used"] != "all":
            used = used[:1] if c["used"] == "output" else used[1:]
        torch.autograd.backward(used, [torch.randn_like(result) for result in used])
        found |= {f"d {name}": x.grad for name, x in leaves.items() if x.grad is not None}
    hashes = {}
    for name, tensor in found.items():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        hashes[name] = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode() + data).hexdigest()
    return hashes


def work(isa: str) -> None:
    """A line a case, in a process for this instruction set alone."""
    for c in cases():
        one, two = bits(c, 1), bits(c, 2)
        each = {name: one[name] if one[name] == two[name] else VARIES for name in one}
        print(json.dumps({"case": {"isa": isa, **c}, "bits": each}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("verb", choices=("save", "check", "work"))
    parser.add_argument("file", metavar="FILE", help="for work, which they call: instruction set")
    verb, file = vars(parser.parse_args()).values()
    if verb == "work":
        work(file)
        return 0
    text = ""
    for isa in ISAS:
        command = [sys.executable, __file__, "work", isa]
        env = os.environ | {"FUSEDRNN_CPU_ISA": isa}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        text += done.stdout
        if done.returncode:
            missing = "FUSEDRNN_CPU_ISA must be one of" in done.stderr
            print(f"{isa}: {'not on this machine' if missing else done.stderr}")
            if not missing:
                return 1
    if verb == "save":
        Path(file).write_text(text)
    now, before = (
        {str(r["case"]): r["bits"] for r in map(json.loads, each.splitlines())}
        for each in (text, Path(file).read_text())
    )
    wrong = 0
    for case in now | before:
        a, b = now.get(case, {}), before.get(case, {})
        names = [name for name in a | b if a.get(name) != b.get(name) or a[name] == VARIES]
        wrong += bool(names)
        if names:
            print(f"{case}: {', '.join(names)}")
    print(f"{len(now)} cases, {wrong} wrong")
    return int(wrong > 0 or not now)


if __name__ == "__main__":
    sys.exit(main())
