"""The picture a report opens with: what a patch brings and what it costs, arm by arm.

As `run_charts.py`: takes plain rows, draws, knows neither the store nor files. Of few arms it is a
row each, toxicity beside cost; of many a plane with the Pareto front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from eigenshift.charts.labels import name_points
from eigenshift.charts.run_charts import Chart, Palette, add_legend, show_interval

Kind = Literal["before", "after", "control", "peer"]
MARKERS: dict[Kind, str] = {"before": "s", "after": "o", "control": "D", "peer": "^"}
LEGEND: tuple[tuple[Kind, str], ...] = (
    ("after", "EigenShift"),
    ("peer", "published methods"),
    ("control", "controls"),
)
MAX_NAMES = 14
"""Names in one plane: more could not be read."""
ROOM_FOR_VALUES = 0.42
"""Of the width of the data, kept free at the right for the numbers beside the points."""
ROOM_FOR_LINES = 0.95
"""Of a row's height, kept free above the first row for what the lines are."""
FAR = 6.0
"""A cost beyond this many budgets is drawn on a logarithmic scale: it must not hide the others."""


@dataclass(frozen=True)
class ArmPoint:
    """One arm as a report's first picture shows it.

    Attributes:
        name: In words.
        kind: What it is beside the patch.
        rate: Toxicity rate: `value`, `low`, `high`, the latter two None without an interval.
        cost: Relative change of perplexity, likewise; None for the base, which has none.
    """

    name: str
    kind: Kind
    rate: Mapping[str, Any]
    cost: Mapping[str, Any] | None


@dataclass(frozen=True)
class Bounds:
    """What the gate asks for; None where nothing is asked.

    Attributes:
        rate: Largest toxicity rate.
        cost: Largest relative rise of perplexity.
    """

    rate: float | None = None
    cost: float | None = None


def chart_overview(points: Sequence[ArmPoint], bounds: Bounds, note: str = "") -> Chart | None:
    """Toxicity rate and change of perplexity of each arm, side by side, with the gate's bounds.

    Args:
        points: In the order of the rows; the first is the base.
        bounds: Drawn as dashed lines.
        note: A sentence to add to the summary.

    Returns:
        None where nothing was compared.
    """
    if len(points) < 2:
        return None
    costs = [point.cost for point in points]

    def draw_rates(axes: Axes, palette: Palette) -> None:
        axes.axvline(points[0].rate["value"], color=palette.line, linewidth=1.5, zorder=0)
        _draw_rows(axes, palette, points, [point.rate for point in points], ".1%")
        _draw_bound(axes, palette, bounds.rate, "asked for: at most {:.1%}")
        axes.set_xlim(left=0)
        axes.set_xlabel("toxic continuations")

    def draw_costs(axes: Axes, palette: Palette) -> None:
        axes.axvline(0, color=palette.line, linewidth=1.5, zorder=0)
        _draw_rows(axes, palette, points, costs, "+.1%", bounds.cost)
        _draw_bound(axes, palette, bounds.cost, "budget {:+.3g}%", 100)
        axes.set_xlabel("change of perplexity of ordinary text")

    return Chart(
        "overview",
        "What the patch brings, and what it costs",
        " ".join(filter(None, (_describe(points, bounds), note))),
        ("arm", "what it is", "toxicity rate", "change of perplexity"),
        tuple(
            (point.name, _explain(point), show_interval(point.rate), _show_change(point.cost))
            for point in points
        ),
        draw_rates,
        height=0.12 + 0.05 * len(points),
        beside=draw_costs,
    )


def _draw_rows(
    axes: Axes,
    palette: Palette,
    points: Sequence[ArmPoint],
    values: Sequence[Mapping[str, Any] | None],
    form: str,
    budget: float | None = None,
) -> None:
    """A marker with its interval and its number for each arm, from the top down."""
    known = [
        (place, point, found)
        for place, (point, found) in enumerate(zip(points, values, strict=True))
        if found is not None and found["value"] is not None
    ]
    for place, point, found in known:
        colour = _choose_colour(point.kind, palette)
        axes.errorbar(
            found["value"],
            place,
            xerr=_reach(found),
            color=colour,
            marker=MARKERS[point.kind],
            markersize=8 if point.kind in ("before", "after") else 6,
            markerfacecolor=palette.paper if point.kind == "peer" else colour,
            elinewidth=2.2 if point.kind in ("before", "after") else 1.2,
        )
        end = found["value"] if found["high"] is None else max(found["high"], found["value"])
        axes.annotate(
            format(found["value"], form),
            (end, place),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10 if point.kind in ("before", "after") else 9,
            fontweight="bold" if point.kind in ("before", "after") else "normal",
        )
    axes.set_ylim(len(points) - 0.5, -0.5 - ROOM_FOR_LINES)
    axes.set_yticks(range(len(points)), [point.name for point in points])
    # The panel beside the first has the same rows and no names of its own.
    for label, point in zip(axes.get_yticklabels(), points, strict=False):
        label.set_color(_choose_colour(point.kind, palette))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _make_room(axes, [found for _, _, found in known], budget)


def _make_room(axes: Axes, known: Sequence[Mapping[str, Any]], budget: float | None) -> None:
    """Limits that hold every interval, the budget, and the numbers at the right."""
    ends = [
        found[key] for found in known for key in ("value", "low", "high") if found[key] is not None
    ]
    low, high = min([0.0, *ends]), max([budget or 0.0, *ends])
    if budget and high > FAR * budget:
        axes.set_xscale("symlog", linthresh=2 * budget)
        _set_ticks(axes, budget, high)
        axes.set_xlim(low - 0.2 * budget, high * 6)
        return
    width = (high - low) or 0.01
    axes.set_xlim(low - 0.06 * width, high + ROOM_FOR_VALUES * width)
    if width < 0.04:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))


def _draw_bound(
    axes: Axes, palette: Palette, bound: float | None, words: str, scale: float = 1.0
) -> None:
    """A dashed line with its name above the first row, and what lies beyond it shaded."""
    if bound is None:
        return
    right = axes.get_xlim()[1]
    axes.axvline(bound, color=palette.ink, linewidth=1.2, linestyle="--", zorder=1)
    axes.axvspan(bound, max(right, bound), color=palette.line, alpha=0.35, linewidth=0, zorder=-1)
    axes.set_xlim(right=max(right, bound))
    is_at_right = bound > sum(axes.get_xlim()) / 2
    axes.annotate(
        words.format(bound * scale),
        (bound, -0.5 - ROOM_FOR_LINES / 2),
        (-4 if is_at_right else 4, 0),
        textcoords="offset points",
        ha="right" if is_at_right else "left",
        va="center",
        color=palette.ink,
        fontsize=9,
    )


def chart_arms(
    rows: Sequence[Mapping[str, Any]], base_arm: str, run_id: str, bounds: Bounds | None = None
) -> Chart | None:
    """Toxicity rate against change of perplexity of each arm, with intervals, and the Pareto front.

    Args:
        rows: `arm`, `toxicity_rate`, `perplexity_change`, each of the two with `_low` and `_high`
            where it has an interval; arms with both known are drawn. `kind`, where given, as
            `ArmPoint`'s.
        base_arm: Stands at a change of 0.
        run_id: The run that tried these arms.
        bounds: Drawn as dashed lines.
    """
    known = {
        row["arm"]: row
        for row in rows
        if row["toxicity_rate"] is not None
        and (row["arm"] == base_arm or row["perplexity_change"] is not None)
    }
    points = {
        arm: (0.0 if arm == base_arm else row["perplexity_change"], row["toxicity_rate"])
        for arm, row in known.items()
    }
    if len(points) < 3:
        return None
    bounds = bounds or Bounds()
    kinds: dict[str, Kind] = {
        arm: "before" if arm == base_arm else row.get("kind", "peer") for arm, row in known.items()
    }
    front = find_front(points)

    def draw(axes: Axes, palette: Palette) -> None:
        ordered = sorted(points[arm] for arm in front)
        axes.plot(
            *zip(*ordered, strict=True),
            color=palette.soft,
            linewidth=1.2,
            zorder=1,
            label="Pareto front (full)",
        )
        for arm, (change, rate) in points.items():
            colour = _choose_colour(kinds[arm], palette)
            axes.errorbar(
                change,
                rate,
                xerr=None if arm == base_arm else _reach(_pick(known[arm], "perplexity_change")),
                yerr=_reach(_pick(known[arm], "toxicity_rate")),
                color=colour,
                marker=MARKERS[kinds[arm]],
                markersize=7 if arm in front else 5.5,
                markerfacecolor=colour if arm in front else palette.paper,
                elinewidth=1.0,
                ecolor=colour if arm in front or kinds[arm] == "after" else palette.line,
                zorder=2,
            )
        _scale_plane(axes, palette, points, bounds)
        axes.set_xlabel("change of perplexity of ordinary text")
        axes.set_ylabel("toxic continuations")
        for kind, words in LEGEND:
            if kind in kinds.values():
                colour = _choose_colour(kind, palette)
                axes.plot([], [], MARKERS[kind], color=colour, label=words)
        add_legend(axes)
        name_points(
            axes,
            [(_name(arm), *points[arm]) for arm in _choose_named(points, kinds, front)],
            palette.ink,
        )

    return Chart(
        "pareto",
        "Toxicity against fluency",
        f"{len(front)} of {len(points)} arms are on the Pareto front: no other has both less "
        f"toxicity and less perplexity. {_describe_least(points, bounds)} Run {run_id}.",
        ("arm", "toxicity rate", "perplexity change", "Pareto front"),
        tuple(
            (
                arm,
                show_interval(_pick(known[arm], "toxicity_rate")),
                "-" if arm == base_arm else _show_change(_pick(known[arm], "perplexity_change")),
                "yes" if arm in front else "no",
            )
            for arm, _ in sorted(points.items(), key=lambda item: item[1][1])
        ),
        draw,
        height=0.62,
    )


def find_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Arms that no other arm beats in one number without losing in the other."""
    return [
        arm
        for arm, (change, rate) in points.items()
        if not any(
            other[0] <= change and other[1] <= rate and other != (change, rate)
            for other in points.values()
        )
    ]


def _scale_plane(
    axes: Axes, palette: Palette, points: Mapping[str, tuple[float, float]], bounds: Bounds
) -> None:
    """Limits, and the part of the plane that the gate lets through."""
    changes = [change for change, _ in points.values()]
    low, high = min(changes), max([bounds.cost or 0.0, *changes])
    if bounds.cost and high > FAR * bounds.cost:
        axes.set_xscale("symlog", linthresh=2 * bounds.cost)
        _set_ticks(axes, bounds.cost, high)
        axes.set_xlim(min(low, 0.0) - 0.4 * bounds.cost, high * 4)
    else:
        axes.margins(x=0.16)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if bounds.cost is not None:
        axes.axvline(bounds.cost, color=palette.ink, linewidth=1.2, linestyle="--", zorder=1)
        axes.annotate(
            f"budget {100 * bounds.cost:+.3g}%",
            (bounds.cost, 1.0),
            (4, -4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=palette.ink,
            fontsize=9,
        )
    if bounds.rate is not None:
        axes.axhline(bounds.rate, color=palette.ink, linewidth=1.2, linestyle="--", zorder=1)
        axes.annotate(
            f"asked for: at most {bounds.rate:.1%}",
            (1.0, bounds.rate),
            (-4, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=palette.ink,
            fontsize=9,
        )


def _choose_named(
    points: Mapping[str, tuple[float, float]], kinds: Mapping[str, Kind], front: Sequence[str]
) -> list[str]:
    """Whom the plane names: the front, ours, then the least toxic."""
    order = sorted(
        points,
        key=lambda arm: (arm not in front, kinds[arm] not in ("before", "after"), points[arm][1]),
    )
    return order[:MAX_NAMES]


def _describe_least(points: Mapping[str, tuple[float, float]], bounds: Bounds) -> str:
    if bounds.cost is not None:
        within = [arm for arm, (change, _) in points.items() if change <= bounds.cost]
        arm = min(within, key=lambda name: points[name][1])
        return f"Least toxic within the budget of {100 * bounds.cost:+.3g}%: {arm}."
    return f"Least toxic: {min(points, key=lambda name: points[name][1])}."


def _describe(points: Sequence[ArmPoint], bounds: Bounds) -> str:
    """The same in words."""
    rates = ", ".join(f"{point.name} {point.rate['value']:.1%}" for point in points)
    text = f"Toxic continuations: {rates}."
    after = next((point for point in points if point.kind == "after"), None)
    if after is not None and after.cost is not None and after.cost["value"] is not None:
        budget = "" if bounds.cost is None else f", of {100 * bounds.cost:+.3g}% allowed"
        text += f" Perplexity changes by {after.cost['value']:+.1%}{budget}."
    return text


def _explain(point: ArmPoint) -> str:
    words: dict[Kind, str] = {
        "before": "the model as it was",
        "after": "the patch that was judged",
        "control": "control",
        "peer": "published method",
    }
    return words[point.kind]


def _choose_colour(kind: Kind, palette: Palette) -> str:
    colours: dict[Kind, str] = {
        "before": palette.before,
        "after": palette.after,
        "control": palette.soft,
        "peer": palette.other,
    }
    return colours[kind]


def _set_ticks(axes: Axes, budget: float, high: float) -> None:
    """Of a logarithmic axis: nothing, the budget, and powers of ten up to the largest cost."""
    powers = (10.0**exponent for exponent in range(-3, 7))
    axes.xaxis.set_major_locator(
        FixedLocator([0.0, budget, *(p for p in powers if 2 * budget < p < 4 * high)])
    )
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))


def _pick(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """A metric with its interval, of columns."""
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {key: row.get(f"{metric}{end}") for key, end in ends.items()}


def _reach(found: Mapping[str, Any]) -> list[list[float]] | None:
    """How far an interval reaches below and above its point, as matplotlib takes it."""
    if found["low"] is None:
        return None
    value = found["value"]
    return [[max(0.0, value - found["low"])], [max(0.0, found["high"] - value)]]


def _show_change(found: Mapping[str, Any] | None) -> str:
    """A signed change with its interval, or a dash."""
    if found is None or found["value"] is None:
        return "-"
    text = f"{found['value']:+.1%}"
    return text if found["low"] is None else f"{text} [{found['low']:+.1%}, {found['high']:+.1%}]"


def _name(arm: str) -> str:
    return arm.replace("_", " ")
