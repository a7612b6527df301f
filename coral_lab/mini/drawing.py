"""Pictures of catalogue products: flat illustrations on a soft studio background.

Every (class, shape) is drawn once, as layers; a product's picture is then a few array operations:
body × (pattern of its color), trim colour, shading, a brand badge, a little jitter. The body's
pattern has a period of about 40 px and the badge is 54 px wide, because models here see the picture
at 84 px.
"""

import hashlib
import json
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from coral_lab.mini.cards import cards
from coral_lab.mini.marks import FIELD, mark, pattern
from coral_lab.mini.outlines import Piece
from coral_lab.mini.shapes import SHAPES

SIDE = 224
"""Width and height of a picture, px."""
_CANVAS = 256  # px of the upright layers, before jitter brings them to SIDE
_FINE = 4  # supersampling of outlines
_INNER = 0.92  # share of the canvas that the unit square takes; the rest is for shadows
_INK = 0.008  # width of an outline, in unit coordinates
_BADGE = 54  # px
_LAYERS = ("body", "trim", "dark", "metal")
_FIXED = {"dark": (52, 56, 68), "metal": (206, 210, 217)}
_BACKDROPS = ("#eceae6", "#e6eaee", "#efe9e1", "#e7ece7", "#efe7e8")


@dataclass(frozen=True, eq=False)
class Layers:
    """What all products of one shape share; masks are float32 between 0 and 1.

    `shares` is how much of body, trim, dark, metal, ink and added light lies in a pixel, times its
    shading, (6, canvas * canvas). `cover` is how much of the background product and shadow hide,
    (canvas, canvas) uint8. `badge` is where the brand mark sits, canvas px.
    """

    shares: np.ndarray
    cover: np.ndarray
    badge: tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A product's picture before it is drawn: calling it draws it. The values are those of `draw`."""

    class_name: str
    shape: str
    color: str
    pattern: str
    brand: str
    trim: str
    seed: int = 0

    def __call__(self) -> Image.Image:
        return draw(**asdict(self))

    @property
    def identity(self) -> str:
        """Equal for equal pictures; other words for the same facts where the code that draws them has
        changed.
        """
        return f"drawing {_code()} {astuple(self)}"


@cache
def _code() -> str:
    """A digest of what pictures are drawn with: this folder's drawing modules and the cards."""
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in ("drawing", "marks", "outlines", "shapes")]
    files += sorted(here.glob("shapes_*.py"))
    content = b"".join(file.read_bytes() for file in files) + json.dumps(dict(cards())).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def draw(
    *, class_name: str, shape: str, color: str, pattern: str, brand: str, trim: str, seed: int = 0
) -> Image.Image:
    """The RGB picture of a product, 224 × 224 px; `seed` settles position, tilt, flip and background.

    The other parameters are the visual attributes; of no brand, "", it has no badge. Raises ValueError for a
    value that is not on the attribute cards.
    """
    marked = {"brand": brand} if brand else {}
    _check(class_name=class_name, shape=shape, color=color, pattern=pattern, trim=trim, **marked)
    rng = np.random.default_rng(seed)
    layers = layers_of(class_name, shape)
    painted = _paint(layers, color, pattern, trim, rng)
    turn = _jitter(rng)
    moved = _move(painted, turn)
    backdrop = _backdrop(int(rng.integers(len(_BACKDROPS))))
    picture = backdrop * (1 - moved[..., 3:] * np.float32(1 / 255)) + moved[..., :3]
    if brand:
        _stamp(picture, brand, turn, layers.badge)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _check(**values: str) -> None:
    class_name, shape = values.pop("class_name"), values.pop("shape")
    if (class_name, shape) not in SHAPES:
        known = ", ".join(f"{a} {b}" for a, b in SHAPES)
        raise ValueError(f"no drawing of a {class_name!r} of shape {shape!r}; there are {known}")
    for key, value in values.items():
        if value not in cards()[key]:
            raise ValueError(f"{key} is {value!r}; the cards have {', '.join(cards()[key])}")


def _rgb(hex: str) -> np.ndarray:
    return np.array([int(hex[i : i + 2], 16) for i in (1, 3, 5)], np.float32)


@cache
def _palette(color: str, trim: str) -> np.ndarray:
    """Colours of body, trim, dark, metal, ink, light and the pattern's second tone, (7, 3)."""
    card = cards()["color"][color]
    base = _rgb(card["hex"])
    # Outlines are darker than what they surround, except on black, where only lighter ones show.
    ink = np.array([96, 97, 108]) if color == "black" else base * 0.45 + np.array([16, 17, 25])
    edge = _rgb(cards()["trim"][trim]["hex"])
    light = (255, 255, 255)
    return np.array([base, edge, _FIXED["dark"], _FIXED["metal"], ink, light, _rgb(card["tone"])], np.float32)


def _paint(layers: Layers, color: str, name: str, trim: str, rng: np.random.Generator) -> np.ndarray:
    """Upright product without background, (canvas, canvas, 4) uint8: premultiplied RGB and coverage."""
    palette = _palette(color, trim)
    # Not `@`: BLAS would start threads for it, which fight with a training on the same cores.
    pixels = np.einsum("lc,lp->cp", palette[:6], layers.shares)
    if name != "plain":
        x, y = rng.integers(FIELD - _CANVAS, size=2)
        second = pattern(name)[y : y + _CANVAS, x : x + _CANVAS].reshape(-1) * layers.shares[0]
        pixels += (palette[6] - palette[0])[:, None] * second
    result = np.empty((_CANVAS, _CANVAS, 4), np.uint8)
    np.minimum(pixels, 255, out=pixels)
    for channel in range(3):
        result[..., channel] = pixels[channel].reshape(_CANVAS, _CANVAS)
    result[..., 3] = layers.cover
    return result


def _jitter(rng: np.random.Generator) -> np.ndarray:
    """Affine map from picture px to canvas px, (2, 3): some shift, size and tilt, perhaps a flip."""
    angle = np.deg2rad(rng.uniform(-4, 4))
    scale = (_INNER * _CANVAS / SIDE) / rng.uniform(0.94, 1.01)
    flip = rng.choice((-1.0, 1.0))
    turn = scale * np.array([[flip * np.cos(angle), -flip * np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = SIDE / 2 + rng.uniform(-3, 3, 2)
    return np.column_stack([turn, _CANVAS / 2 - turn @ centre])


def _move(painted: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """The canvas brought to picture size, (SIDE, SIDE, 4) float32."""
    # RGBX, because Pillow would premultiply RGBA once more.
    canvas = Image.frombuffer("RGBX", (_CANVAS, _CANVAS), painted.tobytes(), "raw", "RGBX", 0, 1)
    how = (Image.Transform.AFFINE, tuple(turn.ravel()), Image.Resampling.BILINEAR)
    moved = canvas.transform((SIDE, SIDE), *how)
    return np.asarray(moved, np.float32)


@cache
def _backdrop(number: int) -> np.ndarray:
    """Wall that brightens towards the middle, floor below it, (SIDE, SIDE, 3) float32."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    spot = 1.03 - 0.16 * ((x - 0.5) ** 2 + (y - 0.42) ** 2)
    floor = 1 / (1 + np.exp(-(y - 0.8) * 40))
    light = spot * (1 - 0.055 * floor * (1.25 - y))
    return np.minimum(_rgb(_BACKDROPS[number]) * light[..., None], 253).astype(np.float32)


def _stamp(picture: np.ndarray, brand: str, turn: np.ndarray, badge: tuple[float, float]) -> None:
    """Put the brand's badge on the picture, in place; it is never flipped or tilted."""
    middle = np.linalg.solve(turn[:, :2], np.array(badge) - turn[:, 2])
    x, y = np.clip(np.rint(middle - _BADGE / 2), 0, SIDE - _BADGE).astype(int)
    color, coverage = _badge(brand)
    area = picture[y : y + _BADGE, x : x + _BADGE]
    area += (color - area) * coverage


@cache
def _badge(brand: str) -> tuple[np.ndarray, np.ndarray]:
    """White plate with a dark rim and the brand's dark mark: colours (54, 54, 3) and coverage (54, 54, 1)."""
    fine = _BADGE * _FINE
    plate, rim = Image.new("L", (fine, fine)), Image.new("L", (fine, fine))
    ImageDraw.Draw(rim).rounded_rectangle((0, 0, fine - 1, fine - 1), 12 * _FINE, fill=255)
    ImageDraw.Draw(plate).rounded_rectangle((8, 8, fine - 9, fine - 9), 10 * _FINE, fill=255)
    inside = np.asarray(plate.reduce(_FINE), np.float32) / 255
    margin = 9
    glyph = np.zeros((_BADGE, _BADGE), np.float32)
    glyph[margin:-margin, margin:-margin] = mark(cards()["brand"][brand]["mark"], _BADGE - 2 * margin)
    light = (inside * (1 - glyph))[..., None]
    ink, paper = np.array([22, 24, 34], np.float32), np.array([253, 253, 251], np.float32)
    return ink + light * (paper - ink), np.asarray(rim.reduce(_FINE), np.float32)[..., None] / 255


@cache
def layers_of(class_name: str, shape: str) -> Layers:
    """The layers of a shape, drawn once from its outlines."""
    badge, parts = SHAPES[class_name, shape]
    masks = {name: Image.new("L", (_CANVAS * _FINE,) * 2) for name in (*_LAYERS, "ink")}
    dim = np.ones((_CANVAS, _CANVAS), np.float32)
    glow = np.zeros_like(dim)
    for part in parts:
        area = _area(part)
        if part.layer == "line":
            masks["ink"].paste(190, mask=area)  # thinner than outlines to the eye
            continue
        flat = _small(area)
        if part.layer == "glint":
            glow = np.maximum(glow, 0.27 * flat)
            continue
        for name, mask in masks.items():
            if name != part.layer:
                mask.paste(0, mask=area)
        masks["ink"].paste(255, mask=ImageChops.subtract(_area(part, _INK), area))
        masks[part.layer].paste(255, mask=area)
        shade, light = _relief(flat)
        dim, glow = dim + (shade - dim) * flat, glow + (light - glow) * flat
    return _assembled(masks, dim, glow, badge)


def _assembled(masks: dict[str, Image.Image], dim: np.ndarray, glow: np.ndarray, badge) -> Layers:
    flat = {name: _small(mask) for name, mask in masks.items()}
    for name in _LAYERS:
        flat[name] = flat[name] * (1 - flat["ink"])
    alpha = np.clip(sum(flat.values()), 0, 1)
    lit = [flat[name] * dim for name in _LAYERS] + [flat["ink"], glow * alpha]
    cover = 255 * (alpha + (1 - alpha) * _shadow(alpha))
    place = tuple(_CANVAS * _placed(badge))
    return Layers(np.stack(lit).reshape(6, -1), cover.astype(np.uint8), place)


def _placed(points) -> np.ndarray:
    """Unit coordinates of a drawing as shares of the canvas."""
    return 0.5 + _INNER * (np.asarray(points) - 0.5)


def _small(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask.reduce(_FINE), np.float32) / 255


def _area(part: Piece, grown: float = 0.0) -> Image.Image:
    """What a part covers, `grown` on all sides, as a fine mask."""
    fine = _CANVAS * _FINE
    picture = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(picture)
    points = [(x, y) for x, y in fine * _placed(part.points)]
    if not part.width:
        pen.polygon(points, fill=255)
        points.append(points[0])
    width = round((part.width + 2 * grown) * _INNER * fine)
    if width:
        pen.line(points, fill=255, width=width)
        r = width / 2 - 0.5  # Pillow draws the last pixel too
        for x, y in points:  # round joints and ends
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return picture


def _blurred(mask: np.ndarray, radius: int) -> np.ndarray:
    picture = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture, np.float32) / 255


def _relief(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shading of a gently rounded piece lit from the upper left: a factor, and white to add."""
    soft = _blurred(flat, 8)
    slope = np.roll(soft, (7, 7), (0, 1)) - np.roll(soft, (-7, -7), (0, 1))  # positive away from the light
    ramp = np.linspace(1.02, 0.9, _CANVAS, dtype=np.float32)
    ground = (ramp[None, :] + ramp[:, None]) / 2
    shade = ground * (1 - 0.34 * np.clip(slope, 0, 1))
    return shade.astype(np.float32), 0.24 * np.clip(-slope - 0.05, 0, 1)


def _shadow(alpha: np.ndarray) -> np.ndarray:
    """Soft contact shadow below the product and a faint one around it, 0 to 1."""
    rows, columns = np.nonzero(alpha > 0.5)
    bottom, left, right = rows.max(), columns.min(), columns.max()
    near = columns[rows > bottom - 14]
    contact = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(contact)
    pen.ellipse((left, bottom - 7, right, bottom + 9), fill=60)
    pen.ellipse((near.min() - 5, bottom - 4, near.max() + 5, bottom + 6), fill=140)
    ground = np.asarray(contact.filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
    around = 0.22 * np.roll(_blurred(alpha, 6), (5, 3), (0, 1))
    return np.maximum(ground, around)
