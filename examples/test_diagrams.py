"""The diagrams of the cells: legible, of torch's formulas, and the same bytes every time."""

from __future__ import annotations

import io
import pathlib
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Bbox, BboxBase
from PIL import Image

from examples import diagrams
from examples.from_scratch.written_out import GATES

NAMES = {"rnn": "", "lstm": "ifgo", "gru": "rzn"}  # an RNN has one set of weights and no gate


@dataclass(frozen=True)
class Drawing:
    """A diagram, drawn."""

    cell: str
    picture: BboxBase  # in pixels, as the others
    texts: list[tuple[str, Any, Bbox]]  # what, in which colour, where
    lines: list[Path]  # in the drawing's units
    drawn: list[Path]  # the same


@pytest.fixture(params=diagrams.DIAGRAMS)
def drawing(request: pytest.FixtureRequest) -> Drawing:
    figure = diagrams.DIAGRAMS[request.param]()
    canvas: Any = figure.canvas
    canvas.draw()
    (axes,) = figure.axes
    about = [(text.get_text(), text.get_color()) for text in axes.texts]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    lines: list[Any] = [patch for patch in axes.patches if type(patch) is PathPatch]
    return Drawing(
        request.param,
        figure.bbox,
        [(*what, box) for what, box in zip(about, boxes, strict=True)],
        [line.get_path() for line in lines],
        [line.get_transform().transform_path(line.get_path()) for line in lines],
    )


def test_no_text_touches_another_or_leaves_the_picture(drawing: Drawing) -> None:
    found = [box for *_, box in drawing.texts]
    assert len(found) > 5
    assert not any(a.overlaps(b) for a, b in combinations(found, 2))
    assert all(drawing.picture.containsx(x) for box in found for x in (box.x0, box.x1))
    assert all(drawing.picture.containsy(y) for box in found for y in (box.y0, box.y1))


def test_no_line_runs_through_a_text(drawing: Drawing) -> None:
    assert len(drawing.drawn) > 5
    for line in drawing.drawn:
        hit = [text for text, _, box in drawing.texts if line.intersects_bbox(box, filled=False)]
        assert hit == []


def test_lines_go_along_the_axes(drawing: Drawing) -> None:
    for line in drawing.lines:
        steps = np.abs(np.diff(np.asarray(line.vertices), axis=0))
        assert (steps.min(axis=1) < 1e-9).all()


def test_a_gate_has_its_name_its_formula_and_a_colour_of_its_own(drawing: Drawing) -> None:
    colours = {text: colour for text, colour, _ in drawing.texts}
    gates = NAMES[drawing.cell]
    assert len(gates or "h") == len(GATES[drawing.cell])
    for gate in gates:
        (formula,) = (text for text in colours if text.startswith(f"${gate}_t ="))
        for parameter in (f"W_{{i{gate}}}", f"b_{{i{gate}}}", f"W_{{h{gate}}}", f"b_{{h{gate}}}"):
            assert parameter in formula
        assert colours[f"${gate}$"] == colours[formula] == diagrams.COLOURS[gate]
    own = [diagrams.COLOURS[key] for key in ("x", "h", "c", *gates)]
    assert len({*own}) == len(own)


@pytest.mark.parametrize("cell", diagrams.DIAGRAMS)
def test_a_diagram_is_a_png_of_the_same_bytes_every_time(cell: str) -> None:
    first = diagrams.png(cell)
    image = Image.open(io.BytesIO(first))
    image.verify()
    assert image.format == "PNG"
    assert min(image.size) > 400
    assert first == diagrams.png(cell)


def test_the_command_writes_a_file_a_cell(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "pictures"
    diagrams.main(["--out", str(out)])
    written = [out / f"{cell}.png" for cell in diagrams.DIAGRAMS]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        f"{cell}.png": diagrams.png(cell) for cell in diagrams.DIAGRAMS
    }


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^cannot write "):
        diagrams.main(["--out", str(tmp_path / "file")])
