"""The notebooks run, and their committed outputs are those of a run.

After a change to one, on a machine that does nothing else, since they show seconds::

    python tests/build/test_notebook.py examples/course.ipynb

runs it and writes the outputs into it; without a name, all of them. Metadata of the machine (times,
versions) are left out, so that only what a reader sees makes a difference to git.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PNG_BYTES = 60 << 10  # a picture's limit
NO_DOWNLOAD = "file:///nowhere"  # a test does with the data that is here, or with random data

Notebook = Any  # nbformat's node, which is a dict
Cell = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A notebook, and what is expected of its outputs.

    Args:
        same: the cells that show no measurement: every run shows the same.
        ratios: the layers whose speed it prints.
        links: some of the pages that it leads to.
    """

    path: Path
    same: frozenset[str]
    ratios: frozenset[str]
    pictures: int
    links: frozenset[str]


CASES = {
    case.path.relative_to(ROOT).as_posix(): case
    for case in (
        Case(
            ROOT / "docs" / "GETTING_STARTED.ipynb",
            same=frozenset({"convert", "to-torch"}),
            ratios=frozenset({"GRU", "LSTM"}),
            pictures=1,
            links=frozenset({"migration.md", "performance.md", "reference.md"}),
        ),
        Case(
            ROOT / "examples" / "course.ipynb",
            same=frozenset(
                {"rnn-diagram", "lstm-diagram", "gru-diagram", "count", "source", "parameters"}
            ),
            ratios=frozenset({"LSTM"}),
            pictures=5,
            links=frozenset({"README.md", "results/results.md", "../docs/GETTING_STARTED.ipynb"}),
        ),
    )
}


def code_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook: Notebook) -> list[dict[str, Any]]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def printed(cell: Cell) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def pictures(cell: Cell) -> list[bytes]:
    found = [output["data"] for output in cell["outputs"] if "data" in output]
    return [base64.b64decode(data["image/png"]) for data in found]


def shown(cell: Cell) -> tuple[str, list[bytes]]:
    """What it prints, and the width and height of its pictures: their bits are of the fonts."""
    return printed(cell), [picture[16:24] for picture in pictures(cell)]


def kinds(cell: Cell) -> list[list[str]]:
    """Of each output of a cell: its stream's name, or the types of its data."""
    return [sorted(output.get("data", [output.get("name")])) for output in cell["outputs"]]


def sources(notebook: Notebook) -> list[tuple[str, str, str]]:
    cells = notebook["cells"]
    return [(cell["id"], cell["cell_type"], "".join(cell["source"])) for cell in cells]


def run(path: Path, home: Path, **environment: str) -> Notebook:
    """The notebook after a run in its own folder; a cell that raises, raises here.

    The kernel is this interpreter's: without a folder of kernels, jupyter_client starts ipykernel
    with sys.executable. IPython reads its settings in `home`, not the user's.
    """
    clients, kernels, nbformat, nbclient, *_ = (
        pytest.importorskip(name)
        for name in (
            "jupyter_client",
            "jupyter_client.kernelspec",
            "nbformat",
            "nbclient",
            "ipykernel",
            "matplotlib.font_manager",  # makes its cache here, or the kernel's stderr speaks of it
        )
    )
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None
    manager = clients.AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=kernels.KernelSpecManager(kernel_dirs=[]),
        connection_file=str(home / "kernel.json"),
    )
    client = nbclient.NotebookClient(
        notebook,
        km=manager,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=os.environ | {"IPYTHONDIR": str(home)} | environment)
    notebook["metadata"] = nbformat.from_dict(METADATA)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def committed(case: Case) -> Notebook:
    return json.loads(case.path.read_text("utf-8"))


def test_the_notebook_runs_and_shows_what_is_committed(
    case: Case, committed: Notebook, tmp_path: Path
) -> None:
    # Threads of torch's that wait leave the core to other tests, or both take minutes.
    quiet = {"OMP_WAIT_POLICY": "passive", "FUSEDRNN_DATA_URL": NO_DOWNLOAD}
    done = run(case.path, tmp_path, **quiet)
    assert sources(done) == sources(committed)
    assert [output for output in outputs(done) if output.get("name") == "stderr"] == []
    text = "".join(map(printed, code_cells(done)))
    ratios = dict(re.findall(r"^(\w+): ratio (\S+)$", text, re.MULTILINE))
    assert ratios.keys() == case.ratios
    assert all(float(ratio) > 0 for ratio in ratios.values())  # its size is the machine's
    for now, then in zip(code_cells(done), code_cells(committed), strict=True):
        assert kinds(now) == kinds(then), now["id"]
        if now["id"] in case.same:
            assert shown(now) == shown(then), now["id"]


def test_the_committed_outputs_are_those_of_one_run_in_order(
    case: Case, committed: Notebook
) -> None:
    cells = code_cells(committed)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert {cell["id"] for cell in cells if cell["outputs"]} > case.same
    assert {output.get("name", "data") for output in outputs(committed)} == {"stdout", "data"}
    assert "cannot be had" not in "".join(map(printed, cells))
    sizes = [len(picture) for cell in cells for picture in pictures(cell)]
    assert [size <= PNG_BYTES for size in sizes] == case.pictures * [True]


def test_the_committed_notebook_holds_nothing_of_the_machine_it_ran_on(
    committed: Notebook,
) -> None:
    assert (committed["nbformat"], committed["nbformat_minor"]) == (4, 5)
    assert committed["metadata"] == METADATA
    assert all(cell["metadata"] == {} for cell in committed["cells"])
    text = "".join(source for _, _, source in sources(committed))
    text += "".join(map(printed, code_cells(committed)))
    assert re.findall(r"(?<![\w.])/(?:home|mnt|opt|root|tmp|usr|var|work|Users)\b", text) == []


def test_the_notebooks_links_lead_to_pages(case: Case, committed: Notebook) -> None:
    text = "".join(source for _, kind, source in sources(committed) if kind == "markdown")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert {*targets} >= case.links
    assert [target for target in targets if not (case.path.parent / target).exists()] == []


def main() -> None:
    parser = argparse.ArgumentParser(description="Run notebooks, and write the outputs into them.")
    parser.add_argument("notebooks", nargs="*", default=[*CASES], help="of " + ", ".join(CASES))
    for path in (CASES[name].path for name in parser.parse_args().notebooks):
        with tempfile.TemporaryDirectory() as home:
            notebook = run(path, Path(home))
        for output in outputs(notebook):
            if output.get("name") == "stderr":
                sys.exit(f"{path} not written, since a cell wrote to stderr: {output['text']}")
        importlib.import_module("nbformat").write(notebook, path)


if __name__ == "__main__":
    main()
