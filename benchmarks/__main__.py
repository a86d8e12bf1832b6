"""python -m benchmarks VERB ...: what measures beside pytest, and what makes pages of results.

From the repository's root: the package here is then the first of that name, and its __init__.py
puts the root last, behind an installed fusedrnn.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

REPORTS = {
    "table": "Markdown table of every case of a run, or a page's",
    "expect": "the range of ratios for each kind of case, by machine",
    "chart": "PNG of the ratio of every case",
    "compare": "two runs, case by case",
    "page": "the whole page of a results file: a grid, peers, callers, ...",
}
MEASUREMENTS = {
    "peers": "inference beside ONNX Runtime and OpenVINO",
    "callers": "several threads that call one module",
    "sequences": "lengths, resets and checkpoints beside the other ways",
    "cartpole": "RecurrentPPO's loop beside one call with resets",
    "bfloat16": "bfloat16 beside float32 and torch.nn",
    "int8": "what bfloat16 and int8 weights cost in accuracy",
    "serving": "frozen layers and streams beside plain ones and other runtimes",
    "gpu": "every case on a GPU, beside cuDNN",
    "gpu-tiles": "each persistent kernel, forced, beside its estimate",
    "gpu-plan": "which way the plan sends a layer on a GPU",
}


def usage() -> str:
    verbs = "\n".join(f"  {verb:10} {says}" for verb, says in (REPORTS | MEASUREMENTS).items())
    return f"usage: python -m benchmarks VERB ..., VERB --help says more\n{verbs}"


def main(argv: Sequence[str]) -> int:
    verb, *rest = argv or [""]
    if verb not in REPORTS | MEASUREMENTS:
        print(usage(), file=sys.stdout if verb in ("-h", "--help") else sys.stderr)
        return 0 if verb in ("-h", "--help") else 2
    folder = "benchmarks.report" if verb in REPORTS else "benchmarks"
    module = importlib.import_module(f"{folder}.{verb.replace('-', '_')}")
    try:
        return int(module.main(rest))
    except (OSError, ValueError) as error:
        if verb in MEASUREMENTS:
            raise
        print(f"{verb}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
