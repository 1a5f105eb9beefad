"""Numbers on paper: medians, percentiles and plain aligned tables."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One number that was asked for, with the most that it should be, if that was said."""

    name: str
    value: float
    unit: str
    target: float | None = None


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` per cent of the samples do not exceed."""
    rank = math.ceil(len(samples) * percent / 100)
    return sorted(samples)[max(rank, 1) - 1]


def number(value: float) -> str:
    """The value with as many decimals as its size deserves."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    lines = [head, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  " + "   ".join([first.ljust(widths[0]), *cells]).rstrip(), flush=True)


def show_figures(figures: Sequence[Figure]) -> None:
    """Print the figures beside their targets."""
    rows = [
        [figure.name, number(figure.value), figure.unit, *_beside_target(figure)]
        for figure in figures
    ]
    show("Figures", ["figure", "measured", "unit", "target", ""], rows)


def _beside_target(figure: Figure) -> tuple[str, str]:
    if figure.target is None:
        return "-", ""
    return number(figure.target), "met" if figure.value <= figure.target else "missed"
