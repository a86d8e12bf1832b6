"""The notebook docs/GETTING_STARTED.ipynb runs, and its committed outputs are those of a run.

After a change to it, on a machine that does nothing else, since it shows seconds::

    python tests/build/test_notebook.py

runs it and writes the outputs into it. Metadata of the machine (times, versions) are left out, so
that only what a reader sees makes a difference to git.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "GETTING_STARTED.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PNG_BYTES = 60 << 10  # the figure's limit
SAME_EVERYWHERE = {"convert", "to-torch"}  # cells that print no measurement

Notebook = Any  # nbformat's node, which is a dict
Cell = dict[str, Any]


def code_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook: Notebook) -> list[dict[str, Any]]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def printed(cell: Cell) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def kinds(cell: Cell) -> list[list[str]]:
    """Of each output of a cell: its stream's name, or the types of its data."""
    return [sorted(output.get("data", [output.get("name")])) for output in cell["outputs"]]


def sources(notebook: Notebook) -> list[tuple[str, str, str]]:
    cells = notebook["cells"]
    return [(cell["id"], cell["cell_type"], "".join(cell["source"])) for cell in cells]


def run(home: Path, **environment: str) -> Notebook:
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
    notebook = nbformat.read(NOTEBOOK, as_version=4)
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
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    client.execute(env=os.environ | {"IPYTHONDIR": str(home)} | environment)
    notebook["metadata"] = nbformat.from_dict(METADATA)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture
def committed() -> Notebook:
    return json.loads(NOTEBOOK.read_text())


def test_the_notebook_runs_and_shows_what_is_committed(committed: Notebook, tmp_path: Path) -> None:
    # Threads of torch's that wait leave the core to other tests, or both take minutes.
    done = run(tmp_path, OMP_WAIT_POLICY="passive")
    assert sources(done) == sources(committed)
    assert [output for output in outputs(done) if output.get("name") == "stderr"] == []
    text = "".join(map(printed, code_cells(done)))
    ratios = dict(re.findall(r"^(\w+): ratio (\S+)$", text, re.MULTILINE))
    assert ratios.keys() == {"GRU", "LSTM"}
    assert all(float(ratio) > 0 for ratio in ratios.values())  # its size is the machine's
    for now, then in zip(code_cells(done), code_cells(committed), strict=True):
        assert kinds(now) == kinds(then), now["id"]
        if now["id"] in SAME_EVERYWHERE:
            assert printed(now) == printed(then), now["id"]


def test_the_committed_outputs_are_those_of_one_run_in_order(committed: Notebook) -> None:
    cells = code_cells(committed)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert {cell["id"] for cell in cells if cell["outputs"]} > SAME_EVERYWHERE
    assert {output.get("name", "data") for output in outputs(committed)} == {"stdout", "data"}
    assert "The Time Machine cannot be had" not in "".join(map(printed, cells))
    shown = [output["data"]["image/png"] for output in outputs(committed) if "data" in output]
    assert [len(base64.b64decode(image)) <= PNG_BYTES for image in shown] == [True]


def test_the_committed_notebook_holds_nothing_of_the_machine_it_ran_on(
    committed: Notebook,
) -> None:
    assert (committed["nbformat"], committed["nbformat_minor"]) == (4, 5)
    assert committed["metadata"] == METADATA
    assert all(cell["metadata"] == {} for cell in committed["cells"])
    text = "".join(source for _, _, source in sources(committed))
    text += "".join(map(printed, code_cells(committed)))
    assert re.findall(r"(?<![\w.])/(?:home|mnt|opt|root|tmp|usr|var|work|Users)\b", text) == []


def test_the_notebooks_links_lead_to_pages(committed: Notebook) -> None:
    text = "".join(source for _, kind, source in sources(committed) if kind == "markdown")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert {*targets} >= {"migration.md", "performance.md", "reference.md"}
    assert [target for target in targets if not (NOTEBOOK.parent / target).is_file()] == []


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        notebook = run(Path(home))
    for output in outputs(notebook):
        if output.get("name") == "stderr":
            sys.exit(f"not written, since a cell wrote to stderr: {output['text']}")
    importlib.import_module("nbformat").write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
