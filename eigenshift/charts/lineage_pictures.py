"""What was made from what, as an inline SVG of boxes in rows and lines from above to below.

Takes boxes and the lines between them as plain values; knows neither the store nor artifacts.
Colours are the page's CSS variables, as in `rendering.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from html import escape

BOX_WIDTH, BOX_HEIGHT = 150, 40
GAP, RISE = 14, 30
"""Between the boxes of a row, and between rows, in units of the drawing."""
MARGIN = GAP
WIDE_ROW, NARROW_ROW = 6, 2
"""Most boxes in a row on a page and on a phone."""
Lines = Mapping[str, frozenset[str]]
"""Key of each box -> keys of what it was made from."""


@dataclass(frozen=True)
class Box:
    """One thing that was made, or came from outside.

    Attributes:
        name: In a few words; some 24 letters fit.
        note: A second line, smaller.
        is_outside: It came from outside: drawn dashed.
        is_accented: It is, or rests on, a patch: drawn in the colour of "after".
    """

    name: str
    note: str = ""
    is_outside: bool = False
    is_accented: bool = False


def draw_lineage(boxes: Mapping[str, Box], made_from: Lines, label: str, *, is_narrow: bool) -> str:
    """An inline SVG element.

    What follows already from other lines is not drawn: a line from A to C where B was made from A
    and C from B.

    Args:
        boxes: By key.
        made_from: Between them; without cycles.
        label: What the picture shows, for those who do not see it.
        is_narrow: For a phone.

    Raises:
        graphlib.CycleError: Something was made from itself.
    """
    reduced = reduce_lines(made_from)
    rows = _wrap_rows(rank_boxes(made_from, boxes), reduced, NARROW_ROW if is_narrow else WIDE_ROW)
    widest = max(map(len, rows))
    width = 2 * MARGIN + widest * BOX_WIDTH + (widest - 1) * GAP
    height = 2 * MARGIN + len(rows) * BOX_HEIGHT + (len(rows) - 1) * RISE
    places = {
        key: (_find_left(number, len(row), width), MARGIN + level * (BOX_HEIGHT + RISE))
        for level, row in enumerate(rows)
        for number, key in enumerate(row)
    }
    lefts = [[places[key][0] for key in row] for row in rows]
    levels = {key: level for level, row in enumerate(rows) for key in row}
    parts = [
        _draw_line(
            places[source],
            places[key],
            lefts[levels[source] + 1 : levels[key]],
            is_accented=boxes[source].is_accented,
        )
        for key in boxes
        for source in sorted(reduced.get(key, ()))
    ]
    parts += [_draw_box(box, *places[key]) for key, box in boxes.items()]
    return (
        f'<svg class="lineage" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def rank_boxes(made_from: Lines, keys: Sequence[str] | Mapping[str, Box]) -> dict[str, int]:
    """Longest way to each from what was made from nothing, 0 for that itself.

    Raises:
        graphlib.CycleError: Something was made from itself.
    """
    ranks: dict[str, int] = {}
    for key in TopologicalSorter(
        {key: made_from.get(key, frozenset()) for key in keys}
    ).static_order():
        ranks[key] = max((ranks[source] + 1 for source in made_from.get(key, ())), default=0)
    return ranks


def reduce_lines(made_from: Lines) -> dict[str, frozenset[str]]:
    """Without the lines that follow from others (transitive reduction)."""
    above: dict[str, frozenset[str]] = {}
    for key in TopologicalSorter(made_from).static_order():
        sources = made_from.get(key, frozenset())
        above[key] = sources.union(*(above[source] for source in sources))
    return {
        key: frozenset(
            source
            for source in sources
            if not any(source in above[other] for other in sources if other != source)
        )
        for key, sources in made_from.items()
    }


def _wrap_rows(ranks: Mapping[str, int], lines: Lines, most: int) -> list[list[str]]:
    """Keys by rank; each row ordered by the places of what its boxes were made from."""
    by_rank: dict[int, list[str]] = {}
    for key, rank in ranks.items():
        by_rank.setdefault(rank, []).append(key)
    places: dict[str, float] = {}
    rows: list[list[str]] = []
    for rank in sorted(by_rank):
        ordered = sorted(by_rank[rank], key=lambda key: (_weigh(lines.get(key, ()), places), key))
        n_rows = -(-len(ordered) // most)
        size = -(-len(ordered) // n_rows)
        for start in range(0, len(ordered), size):
            row = ordered[start : start + size]
            rows.append(row)
            places |= {key: (number + 0.5) / len(row) for number, key in enumerate(row)}
    return rows


def _weigh(sources: Iterable[str], places: Mapping[str, float]) -> float:
    """Mean place of what something was made from; the middle for what was made from nothing."""
    found = [places[source] for source in sources]
    return sum(found) / len(found) if found else 0.5


def _find_left(number: int, n_boxes: int, width: float) -> float:
    used = n_boxes * BOX_WIDTH + (n_boxes - 1) * GAP
    return (width - used) / 2 + number * (BOX_WIDTH + GAP)


def _draw_line(
    source: tuple[float, float],
    target: tuple[float, float],
    between: Sequence[Sequence[float]],
    *,
    is_accented: bool,
) -> str:
    """From the foot of one box to the head of another, past the boxes of the rows between.

    Args:
        source: Left and top of the upper box.
        target: Of the lower one.
        between: Left ends of the boxes of each row between them.
        is_accented: In which colour.
    """
    x, y = source[0] + BOX_WIDTH / 2, source[1] + BOX_HEIGHT
    end = target[0] + BOX_WIDTH / 2
    path = [f"M{x:g} {y:g}"]
    for number, lefts in enumerate(between):
        straight = x + (end - x) / (len(between) - number + 1)
        passed = _find_gap(straight, lefts)
        path.append(_bend(x, y, passed))
        x, y = passed, y + RISE + BOX_HEIGHT
        path.append(f"V{y:g}")
    path.append(_bend(x, y, end))
    colour = "after" if is_accented else "soft"
    return (
        f'<path d="{"".join(path)}" fill="none" stroke="var(--{colour})" stroke-width="1.1" '
        'stroke-opacity="0.75"/>'
    )


def _find_gap(x: float, lefts: Sequence[float]) -> float:
    """The place nearest to `x` that no box of a row covers."""
    if not any(left - GAP / 2 < x < left + BOX_WIDTH + GAP / 2 for left in lefts):
        return x
    gaps = [left - GAP / 2 for left in lefts] + [left + BOX_WIDTH + GAP / 2 for left in lefts]
    return min(gaps, key=lambda gap: abs(gap - x))


def _bend(x: float, y: float, to_x: float) -> str:
    """Down by the room between two rows, and sideways."""
    middle, end = y + RISE / 2, y + RISE
    return f"C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {end:g}"


def _draw_box(box: Box, x: float, y: float) -> str:
    colour = "after" if box.is_accented else "soft"
    dashes = ' stroke-dasharray="4 3"' if box.is_outside else ""
    middle = x + BOX_WIDTH / 2
    first = y + (17 if box.note else 24)
    note = (
        f'<text x="{middle:g}" y="{y + 32:g}" text-anchor="middle" font-size="11" '
        f'fill="var(--soft)">{escape(box.note)}</text>'
        if box.note
        else ""
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="var(--paper)" stroke="var(--{colour})"{dashes}/>'
        f'<text x="{middle:g}" y="{first:g}" text-anchor="middle" font-size="12.5" '
        f'fill="var(--ink)">{escape(box.name)}</text>{note}'
    )
