"""The diagrams of the cells: legible, of torch's formulas, and the same bytes every time."""

from __future__ import annotations

import io
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import PathPatch
from matplotlib.transforms import Bbox
from PIL import Image

from examples import diagrams
from examples.from_scratch.written_out import GATES

# d2l names the candidate after the state it proposes.
NAMES = {"rnn": "", "lstm": "ifgo", "gru": "rzn"}


@pytest.fixture(params=diagrams.DIAGRAMS)
def sheet(request: pytest.FixtureRequest) -> tuple[str, FigureCanvasAgg]:
    """A cell and its drawing, drawn."""
    canvas = FigureCanvasAgg(diagrams.DIAGRAMS[request.param]())
    canvas.draw()
    return request.param, canvas


def extents(canvas: FigureCanvasAgg) -> dict[str, Bbox]:
    """Where each text is, in pixels."""
    (axes,) = canvas.figure.axes
    return {text.get_text(): text.get_window_extent(canvas.get_renderer()) for text in axes.texts}


def test_no_text_touches_another_or_leaves_the_picture(
    sheet: tuple[str, FigureCanvasAgg],
) -> None:
    _, canvas = sheet
    (axes,) = canvas.figure.axes
    found = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    assert len(found) > 5
    assert not any(a.overlaps(b) for a, b in combinations(found, 2))
    picture = canvas.figure.bbox
    assert all(picture.containsx(x) for box in found for x in (box.x0, box.x1))
    assert all(picture.containsy(y) for box in found for y in (box.y0, box.y1))


def test_no_line_runs_through_a_text(sheet: tuple[str, FigureCanvasAgg]) -> None:
    _, canvas = sheet
    (axes,) = canvas.figure.axes
    lines = [patch for patch in axes.patches if type(patch) is PathPatch]
    assert len(lines) > 5
    for text, box in extents(canvas).items():
        for line in lines:
            path = line.get_transform().transform_path(line.get_path())
            assert not path.intersects_bbox(box, filled=False), text


def test_a_gate_has_its_name_its_formula_and_a_colour_of_its_own(
    sheet: tuple[str, FigureCanvasAgg],
) -> None:
    cell, canvas = sheet
    (axes,) = canvas.figure.axes
    texts = {text.get_text(): text.get_color() for text in axes.texts}
    gates = NAMES[cell]
    assert len(gates or "h") == len(GATES[cell])
    for gate in gates:
        (formula,) = (text for text in texts if text.startswith(f"${gate}_t ="))
        for parameter in (f"W_{{i{gate}}}", f"b_{{i{gate}}}", f"W_{{h{gate}}}", f"b_{{h{gate}}}"):
            assert parameter in formula
        assert texts[f"${gate}$"] == texts[formula] == diagrams.COLOURS[gate]
    colours = [diagrams.COLOURS[key] for key in ("x", "h", "c", *gates)]
    assert len({*colours}) == len(colours)


def test_lines_go_along_the_axes(sheet: tuple[str, FigureCanvasAgg]) -> None:
    _, canvas = sheet
    (axes,) = canvas.figure.axes
    for line in (patch for patch in axes.patches if type(patch) is PathPatch):
        for (x0, y0), (x1, y1) in pairwise(line.get_path().vertices):
            assert min(abs(x0 - x1), abs(y0 - y1)) < 1e-9


@pytest.mark.parametrize("cell", diagrams.DIAGRAMS)
def test_a_diagram_is_a_png_of_the_same_bytes_every_time(cell: str) -> None:
    first = diagrams.png(cell)
    image = Image.open(io.BytesIO(first))
    image.verify()
    assert image.format == "PNG"
    assert min(image.size) > 400
    assert first == diagrams.png(cell)


def test_the_command_writes_a_file_a_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "pictures"
    diagrams.main(["--out", str(out)])
    written = [out / f"{cell}.png" for cell in diagrams.DIAGRAMS]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        f"{cell}.png": diagrams.png(cell) for cell in diagrams.DIAGRAMS
    }


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^cannot write "):
        diagrams.main(["--out", str(tmp_path / "file")])
