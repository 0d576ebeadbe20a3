"""Rendering: a chart as inline SVG or as PNG.

SVG goes into the HTML report: colours are CSS variables, so one drawing serves light and dark, and
text stays text. PNG is for papers and for the Prefect UI.
"""

from __future__ import annotations

import io
import re
from dataclasses import fields

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from eigenshift.charts.labels import fit_axis_labels
from eigenshift.charts.run_charts import Chart, Palette

PNG_INCHES = 7.2
WIDE_INCHES, NARROW_INCHES = 9.6, 3.7
"""Of a drawing on a page; both as high as it takes."""
NARROW_RISE, MOST_NARROW_HEIGHT = 1.7, 2.6
"""How much higher than wide a drawing for a phone is, relative to `Chart.height`."""
PNG_DPI = 200
LIGHT = Palette()
_MARKS = Palette(*(f"#0{place}0{place}0{place}" for place in range(1, len(fields(Palette)) + 1)))
"""Colours that stand for CSS variables until the SVG is written."""
_LONG = re.compile(r"(\d\.\d\d)\d+")
"""Places of points, in attributes, to a hundredth: half the size. Texts are left as they are."""
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
}


def render_png(chart: Chart) -> bytes:
    """A chart in light colours, with its title."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure = _draw(chart, LIGHT, PNG_INCHES, with_title=True)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Title": chart.title})
    return buffer.getvalue()


def render_svg(chart: Chart, *, is_narrow: bool) -> str:
    """A chart as an inline SVG element; `var(--ink)` and others give its colours.

    Args:
        chart: What to draw.
        is_narrow: For a phone: higher than wide, with the same size of letters.
    """
    buffer = io.StringIO()
    key = f"{chart.name}-{'narrow' if is_narrow else 'wide'}"
    with rc_context(_STYLE | {"svg.hashsalt": key}):
        figure = _draw(chart, _MARKS, NARROW_INCHES if is_narrow else WIDE_INCHES)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _make_inline(buffer.getvalue(), key, chart.summary)


def _draw(chart: Chart, palette: Palette, width: float, with_title: bool = False) -> Figure:
    is_narrow = width == NARROW_INCHES
    colours = {
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.soft,
        "xtick.color": palette.soft,
        "ytick.color": palette.soft,
        "axes.facecolor": "none",
        "figure.facecolor": palette.paper if with_title else "none",
    }
    with rc_context(_STYLE | colours):
        size = (width, _choose_height(chart, is_narrow=is_narrow))
        figure = Figure(figsize=size, dpi=PNG_DPI, layout="constrained")
        panels = [chart.draw] if chart.beside is None else [chart.draw, chart.beside]
        shape = (len(panels), 1) if is_narrow else (1, len(panels))
        grid = figure.subplots(*shape, sharey=True, squeeze=False)
        for axes, draw in zip(grid.flat, panels, strict=True):
            draw(axes, palette)
        if with_title and chart.beside is None:
            grid.flat[0].set_title(chart.title, loc="left")
        elif with_title:
            figure.suptitle(chart.title, x=0.01, ha="left", fontsize=11)
        fit_axis_labels(figure)
    return figure


def _choose_height(chart: Chart, *, is_narrow: bool) -> float:
    """In inches: letters have one size, so that rows and axes take as much on any page."""
    if not is_narrow:
        return PNG_INCHES * chart.height
    n_panels = 1 if chart.beside is None else 2
    return NARROW_INCHES * min(MOST_NARROW_HEIGHT, NARROW_RISE * n_panels * chart.height)


def _shorten(svg: str) -> str:
    """The same drawing in half the bytes: a report holds each chart twice.

    Layout of the text, names that nothing refers to, turns by nothing, and more digits than a
    screen shows are left out.
    """
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub(r"> <", "><", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r'="[^"]*"', lambda found: _LONG.sub(r"\1", found[0]), svg)
    referred = set(re.findall(r'[#]([^")]+)(?=[")])', svg))
    return re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", svg)


def _make_inline(svg: str, key: str, summary: str) -> str:
    """Leave out what only a file needs; make ids unique, colours variables, and name the whole."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{key}-', svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's
    svg = _shorten(svg)
    for field in fields(Palette):
        svg = svg.replace(getattr(_MARKS, field.name), f"var(--{field.name})")
    label = summary.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = re.match(r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", svg)
    if head is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    return f'<svg viewBox="{head[1]}" role="img" aria-label="{label}">{svg[head.end() :].strip()}'
