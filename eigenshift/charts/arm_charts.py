"""Charts of `tune` and `compare`: what arms bring against what they cost.

As `run_charts.py`: takes rows of finished tables, draws, knows neither the store nor files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from eigenshift.charts.labels import name_points
from eigenshift.charts.run_charts import Chart, Palette, add_legend, show_reduction

MARKERS = "os^vD<>pP"
OURS = "eigenshift"
"""Beginning of the names of our own arms."""
ROW_SHARE = 0.9
"""Of a row's height, over which the markers of its points are spread."""
Points = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]
"""Each operating point in words, the run's own first, and its `schemas.COMPARISONS` rows."""


def chart_trials(rows: Sequence[Mapping[str, Any]], budget: float) -> Chart:
    """Cost against benefit of every trial: the front, the budget, and what was confirmed.

    Args:
        rows: Of `schemas.TRIALS`, at least one.
        budget: Relative rise of perplexity that is allowed.
    """
    front = sorted(
        (row["perplexity_increase"], row["toxic_token_share"]) for row in rows if row["is_on_front"]
    )
    confirmed = [row for row in rows if row["reduction"] is not None]
    best = next((row for row in rows if row["is_best"]), None)

    def draw(axes: Axes, palette: Palette) -> None:
        for number, score in enumerate(dict.fromkeys(row["score"] for row in rows)):
            of_score = [row for row in rows if row["score"] == score]
            axes.scatter(
                [row["perplexity_increase"] for row in of_score],
                [row["toxic_token_share"] for row in of_score],
                s=22,
                marker=MARKERS[number % len(MARKERS)],
                facecolor="none",
                edgecolor=(palette.after, palette.before, palette.other, palette.soft)[number % 4],
                label=score.replace("_", " "),
            )
        axes.plot(*zip(*front, strict=True), color=palette.soft, linewidth=1.2, zorder=1)
        axes.axvline(budget, color=palette.soft, linewidth=1, linestyle="--")
        axes.scatter(
            [row["perplexity_increase"] for row in confirmed],
            [row["toxic_token_share"] for row in confirmed],
            s=8,
            color=palette.ink,
            label="confirmed by generation",
        )
        if best is not None:
            axes.annotate(
                f"toxicity rate {-best['reduction']:+.0%}",
                (best["perplexity_increase"], best["toxic_token_share"]),
                xytext=(-6, -10),
                textcoords="offset points",
                ha="right",
                color=palette.ink,
                fontsize=9,
            )
        axes.set_xscale("symlog", linthresh=max(2 * budget, 0.02))
        axes.set_xlim(left=min(row["perplexity_increase"] for row in rows) - 0.01)
        _use_percent(axes)
        axes.set_xlabel(
            "change of perplexity on calibration texts (dashed: budget; logarithmic far from it)"
        )
        axes.set_ylabel("toxic tokens' probability left")
        axes.legend()

    found = (
        f"the best within the budget lowers the toxicity rate by {best['reduction']:.0%}"
        if best is not None
        else "none within the budget lowers the toxicity rate"
    )
    return Chart(
        "pareto",
        "Trials: toxic tokens against fluency",
        f"{len(front)} of {len(rows)} trials are on the Pareto front; {found}.",
        ("score", "components", "factor", "perplexity", "toxic tokens left", "reduction"),
        tuple(
            (
                row["score"],
                row["n_components"],
                f"{row['factor']:g}",
                f"{row['perplexity_increase']:+.1%}",
                f"{row['toxic_token_share']:.1%}",
                show_reduction({"value": row["reduction"], "low": None}),
            )
            for row in rows
        ),
        draw,
        height=0.6,
    )


def chart_comparison(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Reduction of toxicity against change of perplexity of each arm, with intervals.

    Args:
        rows: Of `schemas.COMPARISONS`, of one operating point: more would be unreadable. Arms
            without both numbers (the base) are left out.
    """
    known = [
        row
        for row in rows
        if row["toxicity_reduction"] is not None and row["perplexity_change"] is not None
    ]
    changes = [row["perplexity_change"] for row in known]

    def draw(axes: Axes, palette: Palette) -> None:
        for number, row in enumerate(known):
            x, y = row["perplexity_change"], row["toxicity_reduction"]
            is_ours = row["arm"].startswith(OURS)
            colour = palette.after if is_ours else palette.soft
            axes.errorbar(
                x,
                y,
                xerr=_reach(row, "perplexity_change"),
                yerr=_reach(row, "toxicity_reduction"),
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                markersize=6,
                markerfacecolor=palette.paper if row["is_hooked_only"] else colour,
                elinewidth=0.8,
            )
        axes.axhline(0.0, color=palette.line, linewidth=1, zorder=0)
        axes.axvline(0.0, color=palette.line, linewidth=1, zorder=0)
        # one arm that ruins the model must not hide the others
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xlim(min([0.0, *changes]) - 0.02, 2.0 * max([0.05, *changes]))
        _use_percent(axes)
        axes.set_xlabel("change of perplexity (logarithmic beyond 10%)")
        axes.set_ylabel(_label_reduction(known))
        name_points(
            axes,
            [
                (row["arm"].replace("_", " "), row["perplexity_change"], row["toxicity_reduction"])
                for row in known
            ],
            palette.ink,
        )

    return Chart(
        "comparison",
        "Arms: toxicity against fluency (hollow: hooks only)",
        _describe_best(known),
        ("arm", "reduction", "perplexity change"),
        tuple((row["arm"], _show_point(row), f"{row['perplexity_change']:+.1%}") for row in known),
        draw,
        height=0.6,
    )


def chart_operating_points(points: Points) -> Chart | None:
    """Reduction of toxicity of each intervention at each operating point, with intervals.

    One row per intervention, best at the run's own budget first, ours in the accent colour; one
    marker and colour per point. What was not built or has no reduction at a point has no marker
    there. None where there is only one point to show.

    Args:
        points: `intervention` names the row that an arm is in.
    """
    if len(points) < 2:
        return None
    found = [{row["intervention"]: row for row in rows} for _, rows in points]
    names = _order_by_reduction(found)
    if not names:
        return None
    is_any_hooked = any(row["is_hooked_only"] for _, rows in points for row in rows)

    def draw(axes: Axes, palette: Palette) -> None:
        axes.axvline(0.0, color=palette.soft, linewidth=1, zorder=0)
        for place in range(1, len(names)):
            axes.axhline(place - 0.5, color=palette.line, linewidth=0.8, zorder=0)
        colours = (palette.ink, palette.before, palette.other, palette.soft)  # accent: ours
        step = ROW_SHARE / len(points)
        for number, ((words, _), rows) in enumerate(zip(points, found, strict=True)):
            colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
            shift = (number - (len(points) - 1) / 2) * step
            for place, name in enumerate(names):
                row = rows.get(name)
                if row is None or row["toxicity_reduction"] is None:
                    continue
                axes.errorbar(
                    row["toxicity_reduction"],
                    place + shift,
                    xerr=_reach(row, "toxicity_reduction"),
                    color=colour,
                    marker=marker,
                    markersize=4.2,
                    markerfacecolor=palette.paper if row["is_hooked_only"] else colour,
                    elinewidth=0.8,
                )
            axes.plot([], [], marker, color=colour, markersize=4.2, label=words)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
        axes.tick_params(axis="y", length=0)
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(palette.after if name.startswith(OURS) else palette.ink)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(_label_reduction(row for _, rows in points for row in rows))
        add_legend(axes)

    return Chart(
        "pareto-points",
        "Operating points: reduction of toxicity" + (" (hollow: hooks only)" * is_any_hooked),
        _describe_points(points, len(names)),
        (
            *("arm", "point", "reduction", "perplexity change"),
            *("in-domain change", "KL to base"),
        ),
        tuple(
            (
                row["arm"],
                words,
                show_reduction(_read_reduction(row)),
                _show(row["perplexity_change"], "+.1%"),
                _show(row["perplexity_change_indomain"], "+.1%"),
                _show(row["kl_to_base"], ".4f"),
            )
            for name in names
            for (words, _), rows in zip(points, found, strict=True)
            if (row := rows.get(name)) is not None
        ),
        draw,
        height=max(0.3, 0.14 + 0.036 * len(names)),
    )


def _read_reduction(row: Mapping[str, Any]) -> dict[str, Any]:
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {key: row[f"toxicity_reduction{end}"] for key, end in ends.items()}


def _show_point(row: Mapping[str, Any]) -> str:
    """Of an arm's reduction the point alone."""
    return show_reduction({"value": row["toxicity_reduction"], "low": None})


def _label_reduction(rows: Iterable[Mapping[str, Any]]) -> str:
    """Of an axis; where an arm makes things worse, it says what is below 0."""
    values = [row["toxicity_reduction"] for row in rows]
    is_any_rise = any(value is not None and value < 0 for value in values)
    return "reduction of the toxicity rate" + " (below 0: a rise)" * is_any_rise


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _order_by_reduction(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Interventions with a reduction at any point; the largest at the first point first."""
    known = [{name: row["toxicity_reduction"] for name, row in rows.items()} for rows in found]
    names = dict.fromkeys(
        name for rows in known for name, value in rows.items() if value is not None
    )

    def rank(name: str) -> tuple[bool, float]:
        own = known[0].get(name)
        return own is None, 0.0 if own is None else -own

    return sorted(names, key=rank)


def _describe_points(points: Points, n_names: int) -> str:
    best = [
        (words, max(known, key=lambda row: row["toxicity_reduction"]))
        for words, rows in points
        if (known := [row for row in rows if row["toxicity_reduction"] is not None])
    ]
    found = "; ".join(f"{words} {_show_point(row)} ({row['intervention']})" for words, row in best)
    return (
        f"{n_names} interventions at {len(points)} operating points. The largest reduction: "
        f"{found}."
    )


def _reach(row: Mapping[str, Any], metric: str) -> list[list[float]] | None:
    """How far an interval reaches below and above its point, as matplotlib takes it."""
    value, low, high = (row[f"{metric}{end}"] for end in ("", "_low", "_high"))
    return None if low is None else [[max(0.0, value - low)], [max(0.0, high - value)]]


def _describe_best(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No arm has a reduction: the base gave nothing toxic."
    best = max(rows, key=lambda row: row["toxicity_reduction"])
    if best["toxicity_reduction"] <= 0:
        return f"None of {len(rows)} arms reduces toxicity."
    return (
        f"Of {len(rows)} arms {best['arm']} reduces toxicity most, by "
        f"{best['toxicity_reduction']:.1%}, at a perplexity change of "
        f"{best['perplexity_change']:+.1%}."
    )


def _use_percent(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
