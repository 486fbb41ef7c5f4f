# SPDX-License-Identifier: Apache-2.0
"""Labels of points that cover neither each other nor a point, and markers of methods."""

import math

import methods

# Where a label may stand around its point: distance in points of print, then direction.
DISTANCES = (6, 11, 17, 25, 34, 46)
DIRECTIONS = [math.radians(a) for a in (35, 145, -35, -145, 0, 180, 90, -90, 65, 115, -65, -115)]
LEADER_FROM = 15  # a label farther than this gets a thin line to its point
MARKER_RADIUS = 4.5


def notable(method):
    """Whether a figure with many points must name this one: what others publish, and ours at its
    defaults. The rest is named where there is room."""
    family = methods.family(method)
    name, options = methods.options_of(method.split("|")[0])
    if family == "ours":
        return methods.is_plain_ours(method)
    if family == "pq":
        return options.get("nbits") == "8" and options.get("scope") != "layer"
    if name == "kvquant":
        return options.get("outliers") != "0"
    return family in ("cq", "kivi", "turboquant", "commvq") or name in ("q4_0", "q8_0", "quanto")


def draw_points(axes, rows, size=6):
    """Rows (bits, value, error, method) as markers of their family; hollow where recent tokens
    stay exact. Returns the looks of the families drawn."""
    looks = methods.styles(methods.family(row[3]) for row in rows)
    for bits, value, error, method in rows:
        colour, marker, _ = looks[methods.family(method)]
        hollow = methods.recent_tokens(method) > 0
        axes.errorbar([bits], [value], yerr=[error] if error else None, fmt=marker, color=colour,
                      markersize=size, capsize=1.5, linewidth=0.8,
                      markerfacecolor="white" if hollow else colour, markeredgewidth=1.2)
    return looks


def legend_handles(axes, looks):
    """One entry for each family, then what hollow means."""
    def entry(colour, marker, fill, label):
        return axes.plot([], [], marker, color=colour, markerfacecolor=fill, label=label,
                         markersize=6, linestyle="")[0]

    handles = [entry(colour, marker, colour, label) for colour, marker, label in looks.values()]
    return handles + [entry("0.3", "o", "white", "hollow: recent tokens exact")]


def _overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _crossing(p, q, lines):
    """Whether the segment p-q cuts a segment in `lines`."""
    def side(a, b, c):
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return any(side(p, q, a) * side(p, q, b) < 0 and side(a, b, p) * side(a, b, q) < 0
               for a, b in lines)


def _cuts_box(segment, box):
    """Whether a segment passes through a box (tested at points along it)."""
    (x0, y0), (x1, y1) = segment
    if max(x0, x1) < box[0] or min(x0, x1) > box[2] or max(y0, y1) < box[1] or min(y0, y1) > box[3]:
        return False
    steps = 64
    return any(box[0] <= x0 + (x1 - x0) * i / steps <= box[2]
               and box[1] <= y0 + (y1 - y0) * i / steps <= box[3] for i in range(steps + 1))


def _segments(axes):
    """The lines drawn on the axes (not markers, not rules over their full width) in pixels."""
    out = []
    for line in axes.get_lines():
        if line.get_linestyle() != "None" and line.get_transform() == axes.transData:
            points = [tuple(p) for p in axes.transData.transform(line.get_xydata())]
            out += list(zip(points, points[1:]))
    return out


def _candidates(x, y, width, height, scale):
    """(preference, box, end of the leader, distance) of every place around a point."""
    for distance in DISTANCES:
        for rank, angle in enumerate(DIRECTIONS):
            dx, dy = distance * scale * math.cos(angle), distance * scale * math.sin(angle)
            # The label's side that faces the point is held at (dx, dy).
            left = x + dx - width * (0.5 - 0.5 * math.cos(angle))
            bottom = y + dy - height * (0.5 - 0.5 * math.sin(angle))
            box = (left, bottom, left + width, bottom + height)
            yield distance * 3 + rank, box, (x + dx, y + dy), distance


def place(axes, rows, texts, optional=(), size=7):
    """Writes texts[method] beside the points of `rows` (bits, value, error, method), in their
    order: what comes first gets the best place. A method in `optional` goes without a label where
    none is free. Limits and scales of the axes must be final. Returns the methods labelled."""
    scale = axes.figure.dpi / 72  # pixels of a point of print
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    dots = [tuple(axes.transData.transform((row[0], row[1]))) for row in rows]
    radius = MARKER_RADIUS * scale
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in dots]
    legend = axes.get_legend()
    if legend:
        box = legend.get_window_extent(renderer)
        taken.append((box.x0, box.y0, box.x1, box.y1))
    lines = _segments(axes)
    leaders, done = [], []

    def cost(candidate, dot):
        preference, box, end, _ = candidate
        inside = (box[0] >= frame.x0 and box[2] <= frame.x1 and box[1] >= frame.y0
                  and box[3] <= frame.y1)
        covered = sum(_overlap(box, other) for other in taken)
        cuts = _crossing(dot, end, leaders)
        crossed = sum(_cuts_box(line, box) for line in lines)
        return (60 * covered + (0 if inside else 1e6) + (2000 if cuts else 0) + 40 * crossed +
                preference)

    for (x, y), (bits, value, _, method) in zip(dots, rows):
        if method not in texts:
            continue
        probe = axes.text(0, 0, texts[method], fontsize=size)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        choices = list(_candidates(x, y, extent.width, extent.height, scale))
        best = min(choices, key=lambda c, dot=(x, y): cost(c, dot))
        if method in optional and cost(best, (x, y)) > 1000:
            continue
        _, box, end, distance = best
        taken.append(box)
        done.append(method)
        axes.annotate(texts[method], (bits, value), fontsize=size, textcoords="offset points",
                      xytext=((box[0] - x) / scale, (box[1] - y) / scale))
        if distance > LEADER_FROM:
            leaders.append(((x, y), end))
            axes.annotate("", (bits, value), textcoords="offset points",
                          xytext=((end[0] - x) / scale, (end[1] - y) / scale),
                          arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.5"})
    return done
