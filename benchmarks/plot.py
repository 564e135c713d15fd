"""A picture of comparisons: a bar for the median of each series, on a scale of its own for each comparison."""

from collections.abc import Sequence
from html import escape

from benchmarks.measuring import Comparison

WIDTH, ROW, LABEL = 760, 22, 300


def bars(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as an SVG document."""
    drawn: list[str] = []
    y = 10
    for comparison in comparisons:
        y += ROW
        drawn.append(f'<text x="10" y="{y - 6}" font-weight="bold">{escape(comparison.title)}</text>')
        longest = max(comparison.subject.p50, comparison.baseline.p50)
        for series, colour in ((comparison.subject, "#2b6cb0"), (comparison.baseline, "#a0aec0")):
            y += ROW
            width = (WIDTH - LABEL - 130) * series.p50 / longest
            drawn.append(f'<text x="20" y="{y - 6}">{escape(series.name)}</text>')
            drawn.append(f'<rect x="{LABEL}" y="{y - 18}" width="{width:.1f}" height="14" fill="{colour}"/>')
            drawn.append(f'<text x="{LABEL + width + 6:.1f}" y="{y - 6}">{comparison.unit.tell(series.p50)}</text>')
        y += ROW // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10}" font-family="sans-serif"'
        f' font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )
