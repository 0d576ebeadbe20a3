"""Charts of a run: what each draws, what it says in words, and the numbers behind it.

Takes plain rows, as the audit gives them, and draws with matplotlib. Knows neither the store nor
files: rows come from `reporting/figures.py`; `rendering.py` makes SVG and PNG of a chart. No chart
holds text of samples; tokens are for `html_report.py`, behind a click.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

Rows = Sequence[dict[str, Any]]
N_BINS = 20


@dataclass(frozen=True)
class Palette:
    """Colours of a chart, as matplotlib takes them."""

    ink: str = "#1c2126"
    soft: str = "#5c6670"
    line: str = "#d9dee3"
    paper: str = "#ffffff"
    before: str = "#b4552d"
    after: str = "#1f6f8b"
    other: str = "#8a6d1f"


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: Of its file; letters, digits and dashes.
        title: What it is about.
        summary: What it shows, in words with numbers: for those who do not see it.
        columns: Headings of the numbers behind it.
        rows: These numbers.
        draw: Draws it.
        height: Of the drawing, relative to `rendering.PNG_INCHES`.
        beside: Draws a second panel with the same rows, right of the first or, where there is
            little room, below it.
    """

    name: str
    title: str
    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    draw: Callable[[Axes, Palette], None]
    height: float = 0.42
    beside: Callable[[Axes, Palette], None] | None = None


def chart_toxicity(rows: Rows, names: tuple[str, str] = ("before", "after")) -> Chart | None:
    """Shares of the continuations by toxicity probability, before and after.

    Args:
        rows: `bin` (0 to `N_BINS` - 1), `n_before`, `n_after`; bins without either may be absent.
        names: Of what is compared.
    """
    counts = np.zeros((2, N_BINS))
    for row in rows:
        counts[:, int(row["bin"])] = row["n_before"], row["n_after"]
    totals = counts.sum(axis=1)
    if not totals[0]:
        return None
    shares = counts / np.maximum(totals, 1)[:, None]
    edges = np.arange(N_BINS + 1) / N_BINS

    def draw(axes: Axes, palette: Palette) -> None:
        for place, (name, colour, hatch) in enumerate(
            ((names[0], palette.before, None), (names[1], palette.after, "///"))
        ):
            axes.bar(
                edges[:-1] + (0.25 + 0.5 * place) / N_BINS,
                shares[place],
                0.46 / N_BINS,
                label=f"{name} ({int(totals[place]):,})",
                color=colour if hatch is None else palette.paper,
                edgecolor=colour,
                hatch=hatch,
                linewidth=1,
            )
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("toxicity probability of one continuation")
        axes.set_ylabel("share of continuations")
        add_legend(axes)

    above = shares[:, N_BINS // 2 :].sum(axis=1)
    return Chart(
        "toxicity",
        "Toxicity of the continuations",
        f"{above[0]:.1%} of {int(totals[0]):,} continuations {names[0]} and {above[1]:.1%} of "
        f"{int(totals[1]):,} {names[1]} have a toxicity probability of 0.5 or more.",
        ("from", "to", *names),
        tuple(
            (f"{edges[i]:.2f}", f"{edges[i + 1]:.2f}", f"{shares[0, i]:.1%}", f"{shares[1, i]:.1%}")
            for i in range(N_BINS)
        ),
        draw,
    )


def chart_layers(rows: Rows, dataset: str, read_at: str, name: str) -> Chart:
    """Probe with its interval, best unit and mean unit, layer by layer.

    Args:
        rows: Of one dataset and site: `layer`, `probe`, `low`, `high`, `best_unit`, `mean_unit`.
        dataset: Its name.
        read_at: Site and pooling.
        name: Of the chart.
    """
    layers = [row["layer"] for row in rows]
    values = {
        key: np.array([np.nan if row[key] is None else row[key] for row in rows], float)
        for key in ("probe", "low", "high", "best_unit", "mean_unit")
    }

    def draw(axes: Axes, palette: Palette) -> None:
        axes.axhline(0.5, color=palette.line, linewidth=1)
        axes.fill_between(
            layers, values["low"], values["high"], color=palette.after, alpha=0.2, linewidth=0
        )
        for key, label, colour, style, marker in (
            ("probe", "probe of the layer", palette.after, "-", "o"),
            ("best_unit", "best single unit", palette.before, "--", "s"),
            ("mean_unit", "mean unit", palette.soft, ":", "^"),
        ):
            axes.plot(layers, values[key], style, color=colour, marker=marker, ms=4, label=label)
        axes.set_xlabel("layer")
        axes.set_ylabel("AUROC, held-out")
        axes.xaxis.get_major_locator().set_params(integer=True)
        add_legend(axes)

    return Chart(
        name,
        f"Layers against single units: {dataset}, {read_at}",
        _describe_layers(layers, values),
        ("layer", "probe", "low", "high", "best unit", "mean unit"),
        tuple((row["layer"], *(_show(row[key]) for key in values)) for row in rows),
        draw,
    )


def _describe_layers(layers: Sequence[int], values: dict[str, np.ndarray]) -> str:
    if np.isnan(values["probe"]).all():
        return "No layer has an AUROC."
    best = int(np.nanargmax(values["probe"]))
    text = f"The best layer is {layers[best]}, with a probe AUROC of {values['probe'][best]:.3f}"
    if not np.isnan(values["best_unit"]).all():
        text += f"; the best single unit of any layer has {np.nanmax(values['best_unit']):.3f}"
    return text + "."


def chart_units(rows: Rows, dataset: str, read_at: str, name: str) -> Chart:
    """Number of units by AUROC.

    Args:
        rows: Of one dataset and site: `low` (edge of a bin of 0.01), `n`.
        dataset: Its name.
        read_at: Site and pooling.
        name: Of the chart.
    """
    lows = np.array([row["low"] for row in rows], float)
    counts = np.array([row["n"] for row in rows], float)
    total = counts.sum()

    def draw(axes: Axes, palette: Palette) -> None:
        axes.bar(lows, counts, 0.01, align="edge", color=palette.after, linewidth=0)
        for threshold in (0.5, 0.55, 0.6):
            axes.axvline(threshold, color=palette.before, linewidth=1, linestyle="--")
        axes.set_xlabel("AUROC of one unit (dashed: 0.50, 0.55, 0.60)")
        axes.set_ylabel("units")

    shares = {edge: counts[lows >= edge - 1e-9].sum() / total for edge in (0.55, 0.6)}
    return Chart(
        name,
        f"Single units: {dataset}, {read_at}",
        f"Of {int(total):,} units, {shares[0.55]:.1%} have an AUROC of 0.55 or more and "
        f"{shares[0.6]:.1%} of 0.60 or more.",
        ("AUROC from", "units"),
        tuple((f"{low:.2f}", f"{int(n):,}") for low, n in zip(lows, counts, strict=True)),
        draw,
    )


def chart_components(rows: Rows) -> Chart | None:
    """Effect size of every component of the head, the chosen ones marked.

    They are called damped where the judged patch consists of them.

    Args:
        rows: `component_index`, `effect_size`, `is_selected`, `is_in_patch`.
    """
    known = [row for row in rows if row["effect_size"] is not None]
    if not known:
        return None
    index = np.array([row["component_index"] for row in known])
    effect = np.array([row["effect_size"] for row in known])
    chosen = np.array([bool(row["is_selected"]) for row in known])
    is_damped = any(row["is_in_patch"] for row in known)
    marked, others = ("damped", "left as it is") if is_damped else ("chosen", "not chosen")

    def draw(axes: Axes, palette: Palette) -> None:
        axes.scatter(
            index[~chosen],
            effect[~chosen],
            s=10,
            color=palette.soft,
            label=others,
            linewidth=0,
        )
        axes.scatter(
            index[chosen], effect[chosen], s=34, marker="D", color=palette.before, label=marked
        )
        axes.set_xlabel("component of the head (0 = largest singular value)")
        axes.set_ylabel("effect size")
        axes.set_ylim(bottom=0)
        add_legend(axes)

    order = np.argsort(-effect)
    text = f"{chosen.sum()} of {len(known)} components are {marked}"
    if chosen.any():
        text += f"; their effect sizes go from {effect[chosen].min():.2f} to "
        text += f"{effect[chosen].max():.2f}"
    if not is_damped:
        text += "; no patch that was judged damps them"
    return Chart(
        "components",
        "Components that generate toxicity",
        text + ".",
        ("component", "effect size", marked),
        tuple(
            (int(index[i]), f"{effect[i]:.2f}", "yes" if chosen[i] else "no") for i in order[:100]
        ),
        draw,
    )


def chart_slices(rows: Rows) -> Chart | None:
    """Toxicity rate of each slice of the prompts, before and after, with intervals.

    Args:
        rows: `slice`, `n`, and `before`, `after`, each a mapping of value, low, high or None.
    """
    rows = [row for row in rows if row["before"] and row["before"]["value"] is not None]
    if not rows:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        places = np.arange(len(rows))[::-1]
        for key, colour, marker, shift in (
            ("before", palette.before, "s", 0.12),
            ("after", palette.after, "o", -0.12),
        ):
            known = [
                (place + shift, row[key])
                for place, row in zip(places, rows, strict=True)
                if row[key] and row[key]["value"] is not None
            ]
            for place, found in known:
                if found["low"] is not None:
                    axes.plot([found["low"], found["high"]], [place, place], color=colour, lw=2)
            axes.scatter(
                [found["value"] for _, found in known],
                [place for place, _ in known],
                color=colour,
                marker=marker,
                s=30,
                label=key,
                zorder=2,
            )
        axes.set_yticks(places, [f"{row['slice']} ({row['n']:,})" for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("toxicity rate")
        add_legend(axes)

    return Chart(
        "slices",
        "Slices of the prompts",
        f"Toxicity rate in {len(rows)} slices of the prompts, before and after.",
        ("slice", "prompts", "before", "after"),
        tuple(
            (row["slice"], row["n"], show_interval(row["before"]), show_interval(row["after"]))
            for row in rows
        ),
        draw,
        height=max(0.25, 0.08 + 0.055 * len(rows)),
    )


def chart_cost(rows: Rows) -> Chart | None:
    """Seconds of work of each stage, added up over the workers.

    Args:
        rows: `stage`, `seconds`, `shards`, `cached`, in the order of the run.
    """
    if not rows:
        return None
    seconds = [row["seconds"] for row in rows]

    def draw(axes: Axes, palette: Palette) -> None:
        places = np.arange(len(rows))[::-1]
        axes.barh(places, seconds, 0.7, color=palette.after, linewidth=0)
        axes.set_yticks(places, [row["stage"].replace("_", " ") for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("seconds of work")

    longest = rows[int(np.argmax(seconds))]["stage"].replace("_", " ")
    most = f"most in {longest}" if any(seconds) else "all was there already"
    return Chart(
        "cost",
        "Cost by stage",
        f"{sum(seconds):.1f} seconds of work in all; {most}.",
        ("stage", "seconds", "shards", "of these cached"),
        tuple(
            (row["stage"], f"{row['seconds']:.1f}", row["shards"], row["cached"]) for row in rows
        ),
        draw,
        height=max(0.25, 0.08 + 0.035 * len(rows)),
    )


def add_legend(axes: Axes) -> None:
    """Above the chart, where it covers nothing; one below the other where there is little room."""
    figure = axes.get_figure()
    if figure is not None:
        is_wide = figure.get_figwidth() > 5
        figure.legend(loc="outside upper left", ncols=4 if is_wide else 1)


def _show(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def show_interval(found: Any) -> str:
    """A share with its interval: of a mapping of value, low, high, or of None."""
    if not found or found["value"] is None:
        return "-"
    text = f"{found['value']:.1%}"
    return text if found["low"] is None else f"{text} [{found['low']:.1%}, {found['high']:.1%}]"


def show_reduction(found: Any) -> str:
    """A reduction with its interval, as `show_interval`; one below 0 as the rise that it is."""
    if not found or found["value"] is None or found["value"] >= 0:
        return show_interval(found)
    text = f"{-found['value']:.1%} rise"
    return text if found["low"] is None else f"{text} [{-found['high']:.1%}, {-found['low']:.1%}]"
