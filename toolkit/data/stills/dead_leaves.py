"""Dead leaves: shapes of every size that hide each other, with sharp edges, thin strokes and letters.

The model of pictures is Matheron's (1968); its sizes follow a power law, as those of things in photographs do (Lee,
Mumford and Huang 2001). Networks that restore pictures learn from it nearly what they learn from photographs (Achddou,
Gousseau and Ladjal 2021). Fills, strokes and letters are ours: what wallpapers lack is edges over plain ground.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FINER = 3  # shapes are drawn so many times larger than asked for
LEAST_PX, EXPONENTS = 6.0, (0.2, 1.3)  # of the sizes' power law, in drawn pixels
NUM_LEAVES = (15, 30, 60, 100)
CONTRASTS = (10, 30, 80, 160)  # standard deviation of colours around their base, of 255
SOFT, BLURRED = 0.1, 0.2  # shares: of leaves with a soft edge, of pictures out of focus
FILTERS = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX)

Points = list[tuple[float, float]]
Shape = Callable[[np.random.Generator, ImageDraw.ImageDraw, float, float], None]
Fill = Callable[[np.random.Generator, tuple[int, int], np.ndarray], Image.Image]


def dead_leaves(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """One picture, uint8 (size_px, size_px, 3)."""
    size = FINER * size_px
    num = int(rng.choice(NUM_LEAVES))
    colours = _colours(rng, num + 1)
    picture = _ramp(rng, (size, size), colours[0])
    for radius, pair in zip(_radii(rng, num, size / 2), colours[1:], strict=True):
        _drop(rng, picture, radius, pair)
    if rng.random() < BLURRED:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3))))
    return np.asarray(picture.resize((size_px, size_px), FILTERS[rng.integers(len(FILTERS))]))


def _radii(rng: np.random.Generator, num: int, most: float) -> np.ndarray:
    """Drawn from a power law between LEAST_PX and ``most``; mostly the largest first, which hides none."""
    power = -rng.uniform(*EXPONENTS)
    low, high = LEAST_PX**power, most**power
    radii: np.ndarray = (low + rng.random(num) * (high - low)) ** (1 / power)
    return np.sort(radii)[::-1] if rng.random() < 0.7 else radii


def _colours(rng: np.random.Generator, num: int) -> np.ndarray:
    """(num, 2, 3) in [0, 255]: pairs around one to three bases, of one contrast; a third differ in brightness alone."""
    bases = rng.uniform(0, 255, (int(rng.integers(1, 4)), 3))
    channels = 1 if rng.random() < 0.3 else 3
    around = rng.normal(0, rng.choice(CONTRASTS), (num, 2, channels))
    found: np.ndarray = np.clip(bases[rng.integers(0, len(bases), (num, 2))] + around, 0, 255)
    return found


def _drop(rng: np.random.Generator, picture: Image.Image, radius: float, colours: np.ndarray) -> None:
    """Lay one leaf on the picture, somewhere, its edge beyond the picture's at times."""
    half = int(radius * 1.5) + 8  # what no shape reaches beyond
    shape = Image.new("L", (2 * half, 2 * half), 0)
    SHAPES[rng.choice(len(SHAPES), p=SHAPE_SHARES)](rng, ImageDraw.Draw(shape), half, radius)
    if rng.random() < SOFT:
        shape = shape.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 12))))
    large = radius > 12
    fill = FILLS[rng.choice(len(FILLS), p=FILL_SHARES)] if large else _plain
    x, y = rng.uniform(-0.1, 1.1, 2) * picture.width - half
    picture.paste(fill(rng, shape.size, colours), (round(x), round(y)), shape)


def _ellipse(rng: np.random.Generator, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    height = radius * rng.uniform(0.3, 1)
    draw.ellipse([middle - radius, middle - height, middle + radius, middle + height], fill=255)


def _ring(rng: np.random.Generator, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    box = [middle - radius, middle - radius, middle + radius, middle + radius]
    draw.ellipse(box, outline=255, width=int(rng.integers(2, 14)))


def _polygon(rng: np.random.Generator, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
    away = radius * rng.uniform(0.5, 1.3, len(angles))
    draw.polygon(_points(middle + away * np.cos(angles), middle + away * np.sin(angles)), fill=255)


def _rectangle(rng: np.random.Generator, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    """Half of them upright."""
    angle = rng.uniform(0, np.pi) * (rng.random() < 0.5)
    along, across = radius * np.array([-1, 1, 1, -1]), radius * rng.uniform(0.2, 1) * np.array([-1, -1, 1, 1])
    cos, sin = np.cos(angle), np.sin(angle)
    draw.polygon(_points(middle + along * cos - across * sin, middle + along * sin + across * cos), fill=255)


def _stroke(rng: np.random.Generator, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    """A straight line, or a quadratic Bézier curve."""
    x, y = middle + radius * rng.uniform(-1.4, 1.4, (2, 3))
    t = np.linspace(0, 1, 12 if rng.random() < 0.6 else 2)
    weights = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
    draw.line(_points(x @ weights, y @ weights), fill=255, width=int(rng.integers(1, 16)), joint="curve")


def _letters(rng: np.random.Generator, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    text = "".join(map(chr, rng.integers(33, 127, int(rng.integers(1, 9)))))
    font = ImageFont.load_default(float(np.clip(radius, 16, 160)))
    draw.text((middle, middle), text, fill=255, font=font, anchor="mm")


def _grains(rng: np.random.Generator, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    for _ in range(int(rng.integers(5, 40))):
        (x, y), size = middle + rng.normal(0, radius / 2, 2), rng.uniform(1, 6)
        draw.ellipse([x - size, y - size, x + size, y + size], fill=255)


def _points(x: np.ndarray, y: np.ndarray) -> Points:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _plain(rng: np.random.Generator, size: tuple[int, int], colours: np.ndarray) -> Image.Image:
    red, green, blue = colours[0].astype(int).tolist()
    return Image.new("RGB", size, (red, green, blue))


def _ramp(rng: np.random.Generator, size: tuple[int, int], colours: np.ndarray) -> Image.Image:
    """One colour that turns into the other."""
    share = _along(rng, size) / size[0] * rng.uniform(0.7, 2) + rng.uniform(0, 1)
    return _mixed(np.clip(share, 0, 1), colours)


def _stripes(rng: np.random.Generator, size: tuple[int, int], colours: np.ndarray) -> Image.Image:
    phase = _along(rng, size) / rng.uniform(6, 60)
    return _mixed((phase % 1 < rng.uniform(0.2, 0.8)).astype(np.float32), colours)


def _cloud(rng: np.random.Generator, size: tuple[int, int], colours: np.ndarray) -> Image.Image:
    """Noise whose power falls with frequency, as a texture's does."""
    width, height = size
    square = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    square[0, 0] = 1
    waves = np.fft.rfft2(rng.normal(size=(height, width))) * square ** (-rng.uniform(0.5, 1.1))
    noise = np.fft.irfft2(waves, (height, width))
    return _mixed(np.clip(0.5 + 0.35 * noise / noise.std(), 0, 1), colours)


def _along(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(height, width): the distance of each pixel from the middle, along a direction that is drawn."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = (np.arange(edge, dtype=np.float32) - edge / 2 for edge in size)
    found: np.ndarray = x[None] * np.cos(angle) + y[:, None] * np.sin(angle)
    return found


def _mixed(share: np.ndarray, colours: np.ndarray) -> Image.Image:
    """The second colour where ``share`` (height, width) is 1, the first where it is 0."""
    first, second = colours.astype(np.float32)
    return Image.fromarray((first + (second - first) * share[..., None].astype(np.float32)).astype(np.uint8))


SHAPES: tuple[Shape, ...] = (_ellipse, _polygon, _rectangle, _stroke, _ring, _letters, _grains)
SHAPE_SHARES = (0.2, 0.2, 0.15, 0.2, 0.1, 0.1, 0.05)
FILLS: tuple[Fill, ...] = (_plain, _ramp, _stripes, _cloud)
FILL_SHARES = (0.6, 0.2, 0.1, 0.1)
