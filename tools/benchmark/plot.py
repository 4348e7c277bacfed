"""Draws time and memory against the size of the models and against their number, as one SVG of four panels."""
import itertools
from html import escape

from benchmark.rows import MIB

PANEL_WIDTH, PANEL_HEIGHT = 400, 250
LEFT, TOP, GAP_X, GAP_Y = 64, 112, 84, 96
LEAST_WIDTH = 640   # of the title and the note below
# series -> (label of the axis, what its rows have in common)
COLUMNS = {
    "size": ("size of a model, billion parameters", lambda entry: f"base + {entry['finetunes']} fine-tunes"),
    "fine-tunes": ("number of fine-tunes",
                   lambda entry: f"{entry['braid']['parameters'] / 1e9:.2f} billion parameters each"),
}

# The same marks in both colour schemes; what an SVG cannot ask (a README's background) is not relied on.
STYLE = """
  svg { background: #ffffff; font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
  text { fill: #1f2328; } .faint { fill: #59636e; } .title { font-size: 16px; font-weight: 600; }
  .panel { font-weight: 600; } .grid { stroke: #d8dee4; stroke-width: 1; } .axis { stroke: #59636e; stroke-width: 1; }
  .braid { stroke: #0969da; fill: none; stroke-width: 2; }
  .braid-dot { fill: #0969da; stroke: #ffffff; stroke-width: 1.5; }
  .limit { stroke: #bc4c00; fill: none; stroke-width: 2; stroke-dasharray: 7 4; }
  .limit-dot { fill: #ffffff; stroke: #bc4c00; stroke-width: 2; }
  .backdrop { fill: #ffffff; } .halo { paint-order: stroke; stroke: #ffffff; stroke-width: 5; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; } .backdrop { fill: #0d1117; } .halo { stroke: #0d1117; }
    text { fill: #e6edf3; } .faint { fill: #9198a1; } .grid { stroke: #2f353d; } .axis { stroke: #9198a1; }
    .braid { stroke: #58a6ff; } .braid-dot { fill: #58a6ff; stroke: #0d1117; }
    .limit { stroke: #f0883e; } .limit-dot { fill: #0d1117; stroke: #f0883e; }
  }
"""


def nice_ticks(highest, most=7):
    """Multiples of 1, 2 or 5 times a power of ten, from 0 to at most `highest`."""
    step, factors = 1e-9, itertools.cycle((2, 2.5, 2))
    while highest / step > most:
        step *= next(factors)
    return [k * step for k in range(int(highest / step * (1 + 1e-9)) + 1)]


class Panel:
    """Axes from 0, in pixels at (left, top)."""

    def __init__(self, left, top, highest_x, highest_y):
        self.left, self.top = left, top
        self.highest_x, self.highest_y = highest_x * 1.04, highest_y * 1.1
        self.parts = []

    def x(self, value):
        return self.left + PANEL_WIDTH * value / self.highest_x

    def y(self, value):
        return self.top + PANEL_HEIGHT * (1 - value / self.highest_y)

    def axes(self, title, x_label, y_label):
        right, bottom = self.left + PANEL_WIDTH, self.top + PANEL_HEIGHT
        for tick in nice_ticks(self.highest_y):
            self.parts.append(f'<line class="grid" x1="{self.left}" y1="{self.y(tick):.1f}" x2="{right}" '
                              f'y2="{self.y(tick):.1f}"/>')
            self.text(self.left - 8, self.y(tick) + 4, f"{tick:g}", "faint", "end")
        for tick in nice_ticks(self.highest_x):
            self.parts.append(f'<line class="axis" x1="{self.x(tick):.1f}" y1="{bottom}" x2="{self.x(tick):.1f}" '
                              f'y2="{bottom + 5}"/>')
            self.text(self.x(tick), bottom + 20, f"{tick:g}", "faint", "middle")
        self.parts.append(f'<line class="axis" x1="{self.left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
        self.text(self.left, self.top - 14, title, "panel", "start")
        self.text(self.left + PANEL_WIDTH / 2, bottom + 42, x_label, "", "middle")
        middle = self.top + PANEL_HEIGHT / 2
        self.parts.append(f'<text text-anchor="middle" transform="translate({self.left - 46} {middle}) rotate(-90)">'
                          f'{escape(y_label)}</text>')

    def line(self, name, points, dots=True):
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{name}" points="{path}"/>')
        for x, y in points if dots else ():
            self.parts.append(f'<circle class="{name}-dot" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4"/>')

    def text(self, x, y, text, kind, anchor):
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')


def legend(x, y, name, text):
    return (f'<line class="{name}" x1="{x}" y1="{y - 4}" x2="{x + 30}" y2="{y - 4}"/>'
            f'<circle class="{name}-dot" cx="{x + 15}" cy="{y - 4}" r="4"/>'
            f'<text x="{x + 38}" y="{y}">{escape(text)}</text>')


def points_of(result, series):
    """(size or number, entry) of the measured rows of a series, in order."""
    names = next((s["rows"] for s in result["series"] if s["name"] == series), [])
    entries = [e for e in result["rows"] if e["name"] in names and "seconds" in e]
    key = (lambda e: e["braid"]["parameters"] / 1e9) if series == "size" else (lambda e: e["finetunes"])
    return sorted(((key(e), e) for e in entries), key=lambda point: point[0])


def draw_column(result, left, series):
    points = points_of(result, series)
    if len(points) < 2:
        return []
    x_label, common = COLUMNS[series]
    subtitle = common(points[0][1])
    highest = points[-1][0]
    braid = [(x, e["seconds"]) for x, e in points]
    limit = [(x, e["limit"]["seconds"]) for x, e in points]
    time = Panel(left, TOP, highest, max(y for _, y in braid + limit))
    time.axes(f"Time: {subtitle}", x_label, "seconds")
    time.line("limit", limit)
    time.line("braid", braid)

    peak = [(x, e["peak_bytes"] / MIB) for x, e in points]
    bound = next(one["target"] for one in points[0][1]["checks"] if one["what"] == "peak memory")
    memory = Panel(left, TOP + PANEL_HEIGHT + GAP_Y, highest, max(bound, *(y for _, y in peak)))
    memory.axes(f"Peak memory: {subtitle}", x_label, "MiB resident")
    memory.line("limit", [(0, bound), (memory.highest_x, bound)], dots=False)
    memory.text(left + PANEL_WIDTH, memory.y(bound) - 7, f"promised: --memory {points[0][1]['memory']} + 64 MiB",
                "faint halo", "end")
    memory.line("braid", peak)
    return time.parts + memory.parts


def draw(result):
    """The SVG's text, of whatever series the run measured."""
    body, left = [], LEFT
    for series in COLUMNS:
        parts = draw_column(result, left, series)
        if parts:
            body += parts
            left += PANEL_WIDTH + GAP_X
    if not body:
        raise ValueError("no series was measured, which takes two of its rows")
    width, height = max(left - GAP_X + 28, LEAST_WIDTH), TOP + 2 * PANEL_HEIGHT + GAP_Y + 84
    where = result["machine"]
    first = next(entry for series in COLUMNS for _, entry in points_of(result, series))
    title = f"braid merge, {first['method']} at density {first['parameters']['density']}, page cache {first['state']}"
    note = (f"{where['cpu']}, {where['cores']} cores, Linux {where['kernel']}, {where['filesystem']}; "
            f"commit {where['commit']}")
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}: time and peak memory">',
        f"<style>{STYLE}</style>",
        f'<rect class="backdrop" width="{width}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="32">{escape(title)}</text>',
        legend(LEFT, 56, "braid", "braid"),
        legend(LEFT + 100, 56, "limit", "limit: the same bytes read and written, nothing else"),
        *body,
        f'<text class="faint" x="{LEFT}" y="{height - 16}">{escape(note)}</text>',
        "</svg>", ""])
