"""Pictures of what was measured, as SVG documents, drawn from what is written down of it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, ROW, LABEL = 760, 22, 300
COLOURS = ("#2b6cb0", "#a0aec0")


def bars(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Comparisons: a bar for the median of each series, on a scale of its own for each comparison, and its p99."""
    drawn: list[str] = []
    y = 10
    for comparison in comparisons:
        y += ROW
        target = f" ({comparison['target']})" if comparison["target"] else ""
        drawn.append(
            f'<text x="10" y="{y - 6}" font-weight="bold">{escape(comparison["title"])}{escape(target)}</text>'
        )
        longest = max(series["p50"] for series in comparison["series"])
        for series, colour in zip(comparison["series"], COLOURS, strict=True):
            y += ROW
            told = f"{series['p50']:.2f} {comparison['unit']}, p99 {series['p99']:.2f}"
            drawn.append(_bar(y, series["name"], series["p50"] / longest, told, colour))
        y += ROW // 2
    return _document(y, drawn)


def shares(found: Mapping[str, Mapping[str, float]]) -> str:
    """What parts of several things take, in microseconds, as an SVG document: a bar for each part, all on one scale."""
    longest = max((taken for parts in found.values() for taken in parts.values()), default=1)
    drawn: list[str] = []
    y = 10
    for name, parts in found.items():
        y += ROW
        drawn.append(f'<text x="10" y="{y - 6}" font-weight="bold">{escape(name)}</text>')
        for part, taken in sorted(parts.items(), key=lambda item: -item[1]):
            y += ROW
            drawn.append(_bar(y, part, taken / longest, f"{taken:.1f} µs", COLOURS[0]))
        y += ROW // 2
    return _document(y, drawn)


def _bar(y: int, label: str, share: float, told: str, colour: str) -> str:
    width = (WIDTH - LABEL - 190) * share
    return (
        f'<text x="20" y="{y - 6}">{escape(label)}</text>'
        f'<rect x="{LABEL}" y="{y - 18}" width="{width:.1f}" height="14" fill="{colour}"/>'
        f'<text x="{LABEL + width + 6:.1f}" y="{y - 6}">{escape(told)}</text>'
    )


def _document(height: int, drawn: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height + 10}" font-family="sans-serif"'
        f' font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )
