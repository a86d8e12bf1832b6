"""Draws the pictures of the page on sequences: lengths, resets and chunks.

    python tools/draw_sequences.py docs/images

writes lengths.svg, resets.svg and chunks.svg, each a few kilobytes of plain SVG in the colours of
the other pictures. A box is one step of one row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

INK, SOFT, LINE = "#1f2933", "#52606d", "#9aa5b1"
BLUE, ORANGE, GREEN = ("#dbe9ff", "#1f6feb"), ("#fdf0e4", "#e8833a"), ("#e3f4e6", "#2f8f4e")
EMPTY = ("#ffffff", LINE)
WIDTH, LEFT = 760, 150
BOX, HIGH, GAP = 40, 26, 8  # of a step: from one to the next, height, between rows


def text(x: float, y: float, words: str, side: str = "start", small: bool = False) -> str:
    look = f'fill="{SOFT}" font-size="12"' if small else f'fill="{INK}" font-size="13"'
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{side}" {look}>{words}</text>'


def box(
    x: float, y: float, colours: tuple[str, str], inside: str = "", dashed: bool = False
) -> str:
    width = BOX - 4
    look = f'fill="{colours[0]}" stroke="{colours[1]}"' + ' stroke-dasharray="3 3"' * dashed
    drawn = f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{HIGH}" rx="4" {look}/>'
    return drawn + (text(x + width / 2, y + 18, inside, "middle", True) if inside else "")


def bar(x: float, top: float, bottom: float) -> str:
    return f'<path d="M{x:g} {top:g}V{bottom:g}" stroke="{ORANGE[1]}" stroke-width="3"/>'


def arrow(x: float, top: float, bottom: float) -> str:
    look = f'fill="none" stroke="{ORANGE[1]}" stroke-width="1.4" marker-end="url(#a)"'
    return f'<path d="M{x:g} {top:g}V{bottom:g}" {look}/>'


def dot(x: float, y: float) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="6" fill="{GREEN[1]}"/>'


HEAD = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{ORANGE[1]}"/></marker></defs>'
)


def sheet(height: int, title: str, lines: Iterator[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="Helvetica, Arial, sans-serif" role="img" aria-labelledby="title">',
            f'<title id="title">{title}</title>',
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
            HEAD,
            *lines,
            "</svg>\n",
        ]
    )


def column(t: float) -> float:
    """Where step t begins."""
    return LEFT + t * BOX


def row(i: float, top: float = 44) -> float:
    return top + i * (HIGH + GAP)


def numbers(steps: int, y: float) -> Iterator[str]:
    yield text(LEFT - 14, y, "step t", "end", True)
    for t in range(steps):
        yield text(column(t) + BOX / 2 - 2, y, str(t), "middle", True)


def key(y: float, *entries: tuple[tuple[str, str], bool, str]) -> Iterator[str]:
    """What the boxes mean, one a line."""
    for i, (colours, dashed, words) in enumerate(entries):
        yield box(LEFT, y + i * (HIGH + 6), colours, dashed=dashed)
        yield text(LEFT + BOX + 8, y + i * (HIGH + 6) + 18, words)


def lengths() -> str:
    T, ends = 10, (7, 10, 0, 4)

    def lines() -> Iterator[str]:
        yield from numbers(T, 30)
        for i, end in enumerate(ends):
            y = row(i)
            yield text(LEFT - 14, y + 18, f"length {end}", "end")
            for t in range(T):
                colours = EMPTY if t >= end else ORANGE if t == end - 1 else BLUE
                yield box(column(t), y, colours, "0" if t >= end else "", t >= end)
            words = f"h_n: step {end - 1}" if end else "h_n: hx, or 0"
            yield text(column(T) + 10, y + 18, words, small=True)
        yield from key(
            row(len(ends)) + 12,
            (BLUE, False, "computed"),
            (ORANGE, False, "a row's last step: h_n and c_n; the reverse direction starts here"),
            (EMPTY, True, "past the end: not computed, the output is 0"),
        )

    return sheet(300, "Rows of 7, 10, 0 and 4 steps in one padded batch", lines())


def resets() -> str:
    T, cuts = 10, ((0, 4), (2, 3, 8))

    def lines() -> Iterator[str]:
        yield from numbers(T, 30)
        for i, at in enumerate(cuts):
            y = row(i, 84) + i * 60
            yield text(LEFT - 14, y + 18, f"row {i}", "end")
            yield text(LEFT - 14, y - 26, "resets", "end", True)
            episode = 0
            for t in range(T):
                cut = t in at
                yield text(column(t) + BOX / 2 - 2, y - 26, str(int(cut)), "middle", True)
                episode += cut
                yield box(column(t), y, (BLUE, GREEN)[episode % 2], "")
                if cut:
                    yield bar(column(t) - 2, y - 6, y + HIGH + 6)
                    yield arrow(column(t) + BOX / 2 - 2, y - 20, y - 2)
        y = 84 + 2 * (HIGH + GAP) + 60 + 16
        anew = "the state begins anew: zeros, or reset_state, which learns"
        yield bar(LEFT + 18, y, y + 24)
        yield text(LEFT + BOX + 8, y + 17, "no state and no gradient passes, in either direction")
        yield arrow(LEFT + 18, y + 32, y + 52)
        yield text(LEFT + BOX + 8, y + 47, anew)

    return sheet(312, "Two rows, cut before the steps whose reset is 1", lines())


def chunks() -> str:
    T, k = 12, 4

    def lines() -> Iterator[str]:
        yield from numbers(T, 30)
        passes = (("forward", None), ("backward, 1st", 2), ("2nd", 1), ("3rd", 0))
        for i, (name, chunk) in enumerate(passes):
            y = row(i)
            yield text(LEFT - 14, y + 18, name, "end")
            for t in range(T):
                again = chunk is not None and t // k == chunk
                done = chunk is not None and t // k > chunk
                yield box(column(t), y, ORANGE if again else EMPTY if done else BLUE, dashed=done)
            for t in range(0, T if chunk is None else (chunk + 1) * k, k):
                yield dot(column(t) - 2, y + HIGH / 2)
        y = row(len(passes)) + 12
        yield dot(LEFT + 18, y + 13)
        yield text(LEFT + BOX + 8, y + 18, "a state that is kept: every k-th, here every 4th")
        yield from key(
            y + HIGH + 6,
            (BLUE, False, "computed forward; its gates are not kept"),
            (ORANGE, False, "gates computed again from the kept state, then their gradients"),
            (EMPTY, True, "done: its gates are gone again"),
        )

    return sheet(340, "Forward keeps every 4th state; backward goes from piece to piece", lines())


PICTURES: dict[str, Callable[[], str]] = {"lengths": lengths, "resets": resets, "chunks": chunks}


def main() -> None:
    for name, draw in PICTURES.items():
        (Path(sys.argv[1]) / f"{name}.svg").write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
