"""Sixteen brand marks and eight patterns, as masks between 0 and 1."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from coral_lab.mini.outlines import arc, blob, box

FIELD = 448
"""Side of a pattern field, px; crops of it have a random offset."""
_FINE = 3  # supersampling


def _star(cx, cy, r, inner=0.45, spikes=5):
    angles = -np.pi / 2 + np.arange(2 * spikes) * np.pi / spikes
    radii = np.where(np.arange(2 * spikes) % 2, r * inner, r)
    return list(zip(cx + radii * np.cos(angles), cy + radii * np.sin(angles), strict=True))


def _heart():
    return blob(
        (0.5, 0.26),
        (0.5, 0.26),
        (0.66, 0.09),
        (0.9, 0.15),
        (0.95, 0.38),
        (0.78, 0.66),
        (0.5, 0.93),
        (0.5, 0.93),
        (0.22, 0.66),
        (0.05, 0.38),
        (0.1, 0.15),
        (0.34, 0.09),
    )


def _turned(points, degrees):
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [tuple(p) for p in (np.asarray(points) - 0.5) @ turn.T + 0.5]


_PLUS = [box(0.36, 0.06, 0.64, 0.94), box(0.06, 0.36, 0.94, 0.64)]

# Polygons to fill with ink; those after "minus" are cut out again.
MARKS = {
    "heart": [_heart()],
    "bolt": [[(0.62, 0.02), (0.14, 0.58), (0.44, 0.58), (0.34, 0.98), (0.86, 0.38), (0.55, 0.38)]],
    "tee": [box(0.06, 0.08, 0.94, 0.36), box(0.36, 0.08, 0.64, 0.94)],
    "ring": [arc(0.5, 0.5, 0.45), "minus", arc(0.5, 0.5, 0.2)],
    "rhomb": [[(0.5, 0.0), (0.95, 0.5), (0.5, 1.0), (0.05, 0.5)]],
    "crescent": [arc(0.47, 0.5, 0.45), "minus", arc(0.7, 0.43, 0.37)],
    "plus": _PLUS,
    "arrow": [[(0.5, 0.02), (0.96, 0.5), (0.66, 0.5), (0.66, 0.96), (0.34, 0.96), (0.34, 0.5), (0.04, 0.5)]],
    "horseshoe": [
        box(0.08, 0.06, 0.92, 0.5),
        arc(0.5, 0.5, 0.42),
        "minus",
        box(0.36, 0.0, 0.64, 0.52),
        arc(0.5, 0.52, 0.14),
    ],
    "dots": [arc(x, y, 0.2) for x in (0.24, 0.76) for y in (0.24, 0.76)],
    "bars": [box(0.06, 0.12, 0.94, 0.4), box(0.06, 0.6, 0.94, 0.88)],
    "hourglass": [[(0.08, 0.05), (0.92, 0.05), (0.58, 0.5), (0.92, 0.95), (0.08, 0.95), (0.42, 0.5)]],
    "square": [box(0.1, 0.1, 0.9, 0.9)],
    "triangle": [[(0.5, 0.04), (0.99, 0.92), (0.01, 0.92)]],
    "steps": [box(0.06, 0.06, 0.5, 0.5), box(0.5, 0.5, 0.94, 0.94)],
    "saltire": [_turned(polygon, 45) for polygon in _PLUS],
}


@cache
def mark(name: str, side: int) -> np.ndarray:
    """Mask of a brand mark, (side, side) float32 between 0 and 1."""
    fine = side * 8
    picture = Image.new("L", (fine, fine))
    pen, ink = ImageDraw.Draw(picture), 255
    for polygon in MARKS[name]:
        if polygon == "minus":
            ink = 0
        else:
            pen.polygon([(x * fine, y * fine) for x, y in polygon], fill=ink)
    return np.asarray(picture.reduce(8), np.float32) / 255


def _grid():
    y, x = np.mgrid[: FIELD * _FINE, : FIELD * _FINE].astype(np.float32) / _FINE
    return x, y


def _plain():
    return np.zeros((FIELD * _FINE,) * 2, bool)


def _stripes():
    x, _ = _grid()
    return x % 46 < 20


def _dots():
    x, y = _grid()
    row = np.floor(y / 38)
    return ((x + 22 * (row % 2)) % 44 - 22) ** 2 + (y % 38 - 19) ** 2 < 13**2


def _checks():
    x, y = _grid()
    return (np.floor(x / 29) + np.floor(y / 29)) % 2 < 1


def _zigzag():
    x, y = _grid()
    return (y + 1.1 * np.abs(x % 56 - 28)) % 46 < 20


def _argyle():
    x, y = _grid()
    return (np.floor(x / 46 + y / 74) + np.floor(x / 46 - y / 74)) % 2 < 1


def _stars():
    picture = Image.new("L", (FIELD * _FINE,) * 2)
    pen = ImageDraw.Draw(picture)
    for row in range(-1, FIELD // 44 + 2):
        for x in range(-60 + 31 * (row % 2), FIELD + 60, 62):
            pen.polygon([(a * _FINE, b * _FINE) for a, b in _star(x, row * 44, 24)], fill=255)
    return np.asarray(picture) > 0


def _camouflage():
    x, y = _grid()
    rng = np.random.default_rng(7)
    height = np.zeros_like(x)
    for _ in range(24):  # waves of about 60 to 110 px in every direction
        angle, length, phase = rng.uniform(0, np.pi), rng.uniform(60, 110), rng.uniform(0, 2 * np.pi)
        height += np.cos((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / length) + phase)
    return height > 0.6


PATTERNS = {
    "plain": _plain,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "zigzag": _zigzag,
    "argyle": _argyle,
    "stars": _stars,
    "camouflage": _camouflage,
}


@cache
def pattern(name: str) -> np.ndarray:
    """Where a pattern has its second tone, (FIELD, FIELD) float32 between 0 and 1."""
    fine = PATTERNS[name]().reshape(FIELD, _FINE, FIELD, _FINE)
    return fine.mean((1, 3), dtype=np.float32)
