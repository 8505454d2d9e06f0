"""Figures of a run folder as PNG: curves, bars, points, and grids of images.

One plain style, colours that colour-blind readers tell apart (Okabe and Ito 2008), equal bytes for equal input. A
caption is stored inside the file (PNG text ``Description``), where the report finds it. matplotlib and PIL are
imported when a figure is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.runs.files import write_atomic
from toolkit.show.table import Spread

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A600")
LINES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
MOST_MARKERS = 30  # a curve with more points is drawn without markers
VISIBLE_PX = 64  # smaller images are enlarged to about this edge


def curves(
    path: str | Path,
    series: Mapping[str, Sequence[Any]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    logx: bool = False,
    logy: bool = False,
    caption: str = "",
) -> Path:
    """Draw ``{label: (x, y)}`` or ``{label: (x, y, low, high)}``, the latter with a band between low and high.

    x, y, low, high: equally long sequences. Raises ValueError when they are not. Put units into the axis labels.
    """
    arrays = {label: [_array(part).astype(float) for part in parts] for label, parts in series.items()}
    for label, parts in arrays.items():
        if len(parts) not in (2, 4) or any(part.shape != parts[0].shape or part.ndim != 1 for part in parts):
            raise ValueError(f"curve '{label}': give x, y or x, y, low, high of equal length")

    def draw(axes: Any) -> None:
        for index, (label, parts) in enumerate(arrays.items()):
            color, line = PALETTE[index % len(PALETTE)], LINES[index // len(PALETTE) % len(LINES)]
            marker = "o" if len(parts[0]) <= MOST_MARKERS else ""
            axes.plot(parts[0], parts[1], line, color=color, marker=marker, label=label)
            if len(parts) == 4:
                axes.fill_between(parts[0], parts[2], parts[3], color=color, alpha=0.18, linewidth=0)
        axes.set_xscale("log" if logx else "linear")
        axes.set_yscale("log" if logy else "linear")
        axes.autoscale_view()
        for axis in [axes.xaxis] * logx + [axes.yaxis] * logy:
            _label_two_and_five(axis)

    return _plot(path, draw, xlabel, ylabel, title, caption, legend=len(arrays) > 1)


def bars(
    path: str | Path,
    values: Mapping[str, float | Spread],
    *,
    ylabel: str,
    xlabel: str = "",
    title: str = "",
    logy: bool = False,
    caption: str = "",
) -> Path:
    """Draw one bar per label; a :class:`Spread` gets a whisker of one standard deviation."""
    spreads = [value if isinstance(value, Spread) else Spread(float(value), math.nan, 1) for value in values.values()]

    def draw(axes: Any) -> None:
        places = range(len(spreads))
        colors = [PALETTE[place % len(PALETTE)] for place in places]
        axes.bar(places, [spread.mean for spread in spreads], width=0.65, color=colors)
        whiskers = [(place, s) for place, s in zip(places, spreads, strict=True) if not math.isnan(s.sd)]
        for place, spread in whiskers:
            axes.errorbar(place, spread.mean, yerr=spread.sd, color="#333333", capsize=3, linewidth=1)
        axes.set_xticks(list(places), list(values), rotation=20 if len(spreads) > 5 else 0)
        axes.grid(axis="x", visible=False)
        axes.set_yscale("log" if logy else "linear")

    return _plot(path, draw, xlabel, ylabel, title, caption, legend=False)


def scatter(
    path: str | Path,
    points: Any,
    codes: Any = None,
    *,
    xlabel: str = "x₁",
    ylabel: str = "x₂",
    title: str = "",
    limit: float | None = None,
    caption: str = "",
) -> Path:
    """Draw ``points`` (n, 2), coloured by the integer ``codes`` (n,) where given.

    ``limit`` fixes both axes to [-limit, limit], so that figures can be laid side by side.
    """
    places = _array(points).astype(float)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"points have shape {places.shape}, expected (n, 2)")
    labels = np.zeros(len(places), dtype=int) if codes is None else _array(codes).astype(int)
    if labels.shape != (len(places),):
        raise ValueError(f"codes have shape {labels.shape}, expected ({len(places)},)")

    def draw(axes: Any) -> None:
        for index, code in enumerate(np.unique(labels)):
            chosen = places[labels == code]
            color = PALETTE[index % len(PALETTE)]
            marker = "os^Dv"[index // len(PALETTE) % 5]
            axes.scatter(*chosen.T, s=6, color=color, marker=marker, alpha=0.6, linewidths=0, label=str(code))
        axes.set_aspect("equal")
        if limit is not None:
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)

    many = codes is not None and len(np.unique(labels)) <= 2 * len(PALETTE)
    return _plot(path, draw, xlabel, ylabel, title, caption, legend=many, size=(4.8, 4.2))


def image_grid(
    path: str | Path,
    images: Any,
    *,
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    scale: int | None = None,
    caption: str = "",
) -> Path:
    """Lay out ``images`` (N, C, H, W) in [-1, 1] (C = 1 grey, 3 colour; values outside are clipped), row by row.

    Small images are enlarged ``scale`` times by nearest neighbour (default: to about 64 pixels). Labels stand left of
    the rows and above the columns. Raises ValueError on another shape and on NaN or infinity.
    """
    from PIL import Image, ImageDraw

    pixels = _to_uint8(_array(images))
    count, height, width = pixels.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    scale = scale or max(1, round(VISIBLE_PX / max(height, width)))
    rows, gap, font = math.ceil(count / columns), 2, _font(13)
    left = max((math.ceil(font.getlength(label)) for label in row_labels), default=-8) + 8
    top = 20 if column_labels else 0
    step_y, step_x = height * scale + gap, width * scale + gap
    sheet = Image.new("RGB", (left + columns * step_x - gap, top + rows * step_y - gap), "white")
    for index, picture in enumerate(pixels):
        tile = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (left + index % columns * step_x, top + index // columns * step_y))
    ink = ImageDraw.Draw(sheet)
    for row, label in enumerate(row_labels[:rows]):
        ink.text((left - 6, top + (row + 0.5) * step_y), label, fill="#333333", font=font, anchor="rm")
    for column, label in enumerate(column_labels[:columns]):
        ink.text((left + (column + 0.5) * step_x, top / 2), label, fill="#333333", font=font, anchor="mm")
    return _save_image(path, sheet, caption)


def read_caption(path: str | Path) -> str:
    """The caption stored in a PNG, or the empty string."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("Description", ""))
    except Exception:  # whatever a decoder raises for a damaged file, or one that says it is huge
        return ""


def _plot(
    path: str | Path,
    draw: Callable[[Any], None],
    xlabel: str,
    ylabel: str,
    title: str,
    caption: str,
    legend: bool,
    size: tuple[float, float] = (5.6, 3.6),
) -> Path:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.set_title(title, loc="left")
        if legend:
            many = len(axes.get_legend_handles_labels()[1]) > 5
            place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if many else {}
            axes.legend(markerscale=1.5, **place)
        buffer = io.BytesIO()
        metadata = {"Software": None, **({"Description": caption} if caption else {})}
        figure.savefig(buffer, format="png", metadata=metadata)
    return write_atomic(path, buffer.getvalue())


def _label_two_and_five(axis: Any) -> None:
    """Between powers of ten of a logarithmic axis of less than two decades; matplotlib's own choice overlaps there."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator

    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))


def save_images(folder: Path, images: Any, first: int = 0) -> None:
    """Images (N, C, H, W) in [-1, 1] as 8-bit files ``folder/00000.png``, ..., numbered from ``first``."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.round((np.clip(_array(images), -1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    for number, image in enumerate(pixels, first):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{number:05d}.png")


def _save_image(path: str | Path, image: Any, caption: str) -> Path:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if caption:
        info.add_itxt("Description", caption)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return write_atomic(path, buffer.getvalue())


def _to_uint8(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) in [-1, 1] -> uint8 (N, H, W, 3)."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images have shape {images.shape}, expected (N, 1 or 3, H, W)")
    if not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
        raise ValueError(f"image {bad} holds NaN or infinity")
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])).transpose(0, 2, 3, 1))


def _array(value: Any) -> np.ndarray:
    """A numpy array of ``value``, which may be a tensor on any device and of any floating type."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return value.numpy()
    return np.asarray(value)


def _font(size_px: int) -> Any:
    """DejaVu Sans, which matplotlib ships: PIL's own font lacks Greek letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size_px)
