"""Vector outlines in unit coordinates (0 to 1, y down), from which products are drawn."""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

Point = tuple[float, float]


@dataclass(frozen=True)
class Piece:
    """One piece of a product, drawn over the pieces before it.

    `layer` is "body" (color and pattern), "trim" (trim colour), "dark" or "metal" (fixed greys),
    "glint" (white, translucent, shades nothing) or "line" (an ink line on what is there). `width`
    0 fills the polygon `points`; otherwise they are an open path of that width.
    """

    layer: str
    points: tuple[Point, ...]
    width: float = 0.0


def body(points) -> Piece:
    return Piece("body", tuple(points))


def trim(points, width=0.0) -> Piece:
    return Piece("trim", tuple(points), width)


def dark(points, width=0.0) -> Piece:
    return Piece("dark", tuple(points), width)


def metal(points, width=0.0) -> Piece:
    return Piece("metal", tuple(points), width)


def glint(points, width=0.0) -> Piece:
    return Piece("glint", tuple(points), width)


def line(points, width=0.009) -> Piece:
    return Piece("line", tuple(points), width)


def arc(cx, cy, rx, ry=None, start=0.0, end=360.0, count=64) -> list[Point]:
    """Points of an elliptical arc, whose parameters these are; degrees, clockwise from the right."""
    ry = rx if ry is None else ry
    angles = np.linspace(start, end, count) * pi / 180
    return [(cx + rx * cos(angle), cy + ry * sin(angle)) for angle in angles]


oval = arc


def box(x0, y0, x1, y1, r=0.0) -> list[Point]:
    """A rectangle with corners of radius `r`."""
    if not r:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    corners = ((x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180))
    return [point for x, y, start in corners for point in arc(x, y, r, r, start, start + 90, 12)]


def rounded(points, r=0.03) -> list[Point]:
    """A polygon with its corners rounded by about `r`."""
    result = []
    for i, here in enumerate(points):
        ends = [_towards(here, points[i - 1], r), _towards(here, points[(i + 1) % len(points)], r)]
        for t in np.linspace(0, 1, 10):  # a quadratic Bézier curve with the corner as its control point
            weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
            triple = (ends[0], here, ends[1])
            result.append(tuple(sum(w * p[k] for w, p in zip(weights, triple, strict=True)) for k in (0, 1)))
    return result


def _towards(here: Point, there: Point, distance: float) -> Point:
    length = max(((there[0] - here[0]) ** 2 + (there[1] - here[1]) ** 2) ** 0.5, 1e-9)
    share = min(distance / length, 0.5)
    return here[0] + share * (there[0] - here[0]), here[1] + share * (there[1] - here[1])


def curve(*points, closed=False) -> list[Point]:
    """A smooth (Catmull-Rom) curve through the points; a point given twice is a corner."""
    p = np.asarray(points, float)
    n = len(p)
    result = []
    for i in range(n if closed else n - 1):
        around = np.arange(i - 1, i + 3)
        a, b, c, d = p[around % n if closed else around.clip(0, n - 1)]
        t = np.linspace(0, 1, 12, endpoint=False)[:, None]
        spline = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
        result += [tuple(point) for point in spline]
    return result if closed else [*result, tuple(p[-1])]


def blob(*points) -> list[Point]:
    """A smooth closed outline through the points."""
    return curve(*points, closed=True)


def mirror(points) -> list[Point]:
    """The points reflected left to right about x = 0.5."""
    return [(1 - x, y) for x, y in points]


def both(half) -> list[Point]:
    """A symmetric outline from its right half, given from top to bottom."""
    return [*half, *reversed(mirror(half))]


def pair(make, points, width=None) -> list[Piece]:
    """The part and its mirror image."""
    extra = {} if width is None else {"width": width}
    return [make(points, **extra), make(mirror(points), **extra)]
