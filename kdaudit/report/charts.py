"""Plots as inline SVG: numbers in, markup out; colours come from the page's style, so that they follow its mode."""

import math
from collections.abc import Callable, Sequence
from html import escape

from kdaudit.report.results import PlotsSection

Scale = Callable[[float], float]

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 44


def score_histogram(plots: PlotsSection) -> str:
    """Scores of calibration, unflagged and flagged images, logarithmic counts, with the threshold."""
    edges = plots.score_edges
    spread = edges[0] > 0 and edges[-1] / edges[0] > 100
    place = [math.log10(edge) for edge in edges] if spread else list(edges)
    low, span = place[0], (place[-1] - place[0]) or 1.0
    series = {"unflagged": plots.unflagged, "calibration": plots.calibration, "flagged": plots.flagged}
    top = math.log10(max(10, max(max(counts, default=0) for counts in series.values()) + 1))

    def x(value: float) -> float:
        return LEFT + (value - low) / span * (WIDTH - LEFT - RIGHT)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - math.log10(count + 1) / top * (HEIGHT - TOP - BOTTOM)

    parts = [_y_axis([10**i for i in range(int(top) + 1)], y)]
    for name, counts in series.items():
        parts.append(_steps(name, [x(p) for p in place], [y(c) for c in counts]))
    parts.append(_x_axis(_score_ticks(edges, spread), x))
    if plots.threshold is not None and plots.threshold > 0:
        at = x(math.log10(plots.threshold) if spread else plots.threshold)
        anchor = "end" if at > WIDTH - RIGHT - 110 else "start"
        shift = -5 if anchor == "end" else 5
        parts.append(
            f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="limit-label" x="{at + shift:.1f}" y="{TOP + 9}" text-anchor="{anchor}">'
            f"first flag {plots.threshold:.3g}</text>"
        )
    return _svg(parts, "Scores of the images", plots.score_name)


def p_value_histogram(plots: PlotsSection) -> str:
    """P-values of the suspect images: poison piles up at the left, what is usual for its answer at the right."""
    counts = plots.p_values
    total, most = sum(counts), max([*counts, 1])
    even = total / len(counts)

    def x(p: float) -> float:
        return LEFT + p * (WIDTH - LEFT - RIGHT)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - count / most * (HEIGHT - TOP - BOTTOM)

    step = next(s for s in (f * 10**e for e in range(12) for f in (1, 2, 5)) if most / s <= 5)
    ticks = list(range(0, most + 1, step))
    parts = [_y_axis(ticks, y)]
    for i, count in enumerate(counts):
        left, right = x(i / len(counts)) + 1, x((i + 1) / len(counts)) - 1
        name = "flagged" if i == 0 else "unflagged"
        parts.append(
            f'<rect class="bar {name}" x="{left:.1f}" y="{y(count):.1f}" width="{right - left:.1f}" '
            f'height="{HEIGHT - BOTTOM - y(count):.1f}"><title>{count:,} images</title></rect>'
        )
    parts.append(f'<line class="even" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(even):.1f}" y2="{y(even):.1f}"/>')
    parts.append(_x_axis([(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")], x))
    return _svg(parts, "P-values of the images", "p-value; dashed: an even spread")


def _svg(parts: Sequence[str], title: str, label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + f'<text class="axis-label" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(label)}</text></svg>"
    )


def _steps(name: str, edges: Sequence[float], heights: Sequence[float]) -> str:
    floor = HEIGHT - BOTTOM
    points = [f"M{edges[0]:.1f} {floor}"]
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        points.append(f"L{left:.1f} {height:.1f}L{right:.1f} {height:.1f}")
    points.append(f"L{edges[-1]:.1f} {floor}Z")
    return f'<path class="area {name}" d="{"".join(points)}"/>'


def _x_axis(ticks: Sequence[tuple[float, str]], x: Scale) -> str:
    floor = HEIGHT - BOTTOM
    marks = "".join(
        f'<text class="tick" x="{x(value):.1f}" y="{floor + 15}" text-anchor="middle">{escape(text)}</text>'
        for value, text in ticks
    )
    return f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>{marks}'


def _y_axis(ticks: Sequence[int], y: Scale) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(n):.1f}" y2="{y(n):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(n) + 3.5:.1f}" text-anchor="end">{n:,}</text>'
        for n in ticks
    )


def _score_ticks(edges: Sequence[float], spread: bool) -> list[tuple[float, str]]:
    if spread:
        powers = range(math.ceil(math.log10(edges[0]) - 1e-9), math.floor(math.log10(edges[-1]) + 1e-9) + 1)
        return [(float(p), f"{10.0**p:g}" if -4 < p < 4 else f"1e{p}") for p in powers]
    return [(edges[i], f"{edges[i]:.2g}") for i in range(0, len(edges), max(1, len(edges) // 6))]
