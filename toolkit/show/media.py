"""Pictures, films and texts of run folders inside a page, within a bound on its size.

What is large is shown smaller, and what does not fit is named: its caption says so. A link that leads out of its folder
is not followed.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.show.figures import read_caption

IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}
VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
TEXTS = {".txt"}
MOST_BYTES = 32 * 2**20  # of all media of a page; what does not fit is named
MOST_IMAGE = 2**20  # bytes of an image that is shown as it is
MOST_PX = 2400  # its longer side
SHOWN_PX = 1600  # to which a larger one is reduced
MOST_PIXELS = 40_000_000  # of an image that is opened at all
MOST_TEXT = 20_000  # characters of a text sample
MOST_IN_ROW = 24  # runs whose picture of one name is shown


@dataclass
class Shelf:
    """What may still go into the page, and what did not."""

    left: int = MOST_BYTES
    left_out: list[str] = field(default_factory=list)

    def take(self, path: Path, size: int) -> bool:
        """Whether ``size`` bytes of ``path`` fit; then they are taken, else ``path`` is noted."""
        if size > self.left:
            self.left_out.append(f"{path} ({size / 2**20:.1f} MiB)")
            return False
        self.left -= size
        return True

    def note(self) -> str:
        """A line for the page about what does not fit."""
        if not self.left_out:
            return ""
        some = ", ".join(self.left_out[:5]) + (f" and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else "")
        said = f"not in this page, which holds at most {MOST_BYTES >> 20} MiB of pictures and films: {some}"
        return f'<p class="note">{html.escape(said)}</p>'


def media_files(run: Path) -> dict[str, Path]:
    """``{name below the run: file}`` of the samples, then of the figures; of a GIF that is an mp4 too the mp4 alone."""
    found = {}
    for folder in (run / "samples", run / "figures"):
        for path in sorted(folder.rglob("*")):
            shown = path.suffix.lower() in IMAGES | VIDEOS or path.suffix.lower() in TEXTS
            inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
            twice = path.suffix.lower() == ".gif" and path.with_suffix(".mp4").is_file()
            if shown and inside and not twice and not path.name.startswith("."):
                found[path.relative_to(run).as_posix()] = path
    return found


def gallery(run: Path, kind: str, shelf: Shelf) -> str:
    """Every picture, film and text below ``run``/``kind`` with its caption."""
    files = {name: path for name, path in media_files(run).items() if name.split("/")[0] == kind}
    items = [figure(path, _caption(path) or _words(name), shelf) for name, path in files.items()]
    return f'<div class="media {kind}">{"".join(items)}</div>' if any(items) else ""


def side_by_side(runs: Sequence[tuple[str, Path]], shelf: Shelf) -> str:
    """Of every name the pictures of all ``runs`` (name, folder) in a row; films of one name are played in step.

    The first runs come first into the page where not all fit.
    """
    files = [(name, media_files(folder)) for name, folder in runs]
    names = list(dict.fromkeys(key for _, found in files for key in found))
    rows: dict[str, list[str]] = {name: [] for name in names}
    for run, found in files:
        for name in names:
            if name in found and len(rows[name]) < MOST_IN_ROW:
                rows[name] += filter(None, [figure(found[name], run, shelf)])
    parts = []
    for name, items in rows.items():
        more = sum(name in found for _, found in files) - len(items)
        note = f'<p class="note">{more} more run(s) have one that is not shown here</p>' if more else ""
        said = next((_caption(found[name]) for _, found in files if name in found), "")
        about = f'<p class="note">{html.escape(said)}</p>' if said else ""
        films = " players" if Path(name).suffix.lower() in VIDEOS else ""
        row = f'<div class="media row{films}">{"".join(items)}</div>'
        parts.append(f"<h3>{html.escape(_words(name))}</h3>{about}{row}{note}" if items else "")
    return "".join(parts)


def figure(path: Path, name: str, shelf: Shelf) -> str:
    """``path`` as a figure; empty where it does not fit on ``shelf``."""
    suffix = path.suffix.lower()
    if suffix in TEXTS:
        with open(path, errors="replace", encoding="utf-8") as file:
            text = file.read(MOST_TEXT)
        return f"<figure><pre>{html.escape(text)}</pre><figcaption>{html.escape(name)}</figcaption></figure>"
    medium, said = _video(path, name, shelf) if suffix in VIDEOS else _image(path, name, shelf)
    caption = html.escape(name) + (f" · {html.escape(said)}" if said else "")
    return f"<figure>{medium}<figcaption>{caption}</figcaption></figure>" if medium else ""


def _caption(path: Path) -> str:
    """What a picture says of itself."""
    return read_caption(path) if path.suffix.lower() == ".png" else ""


def _words(name: str) -> str:
    """samples/prior_grid.png: prior grid."""
    return str(Path(name).relative_to(Path(name).parts[0]).with_suffix("")).replace("_", " ")


def _image(path: Path, name: str, shelf: Shelf) -> tuple[str, str]:
    """The element, and whether it was reduced, in words."""
    size = _pixels(path)
    data, kind, said = b"", IMAGES[path.suffix.lower()], ""
    if size and size[0] * size[1] > MOST_PIXELS:
        shelf.left_out.append(f"{path} ({size[0]}x{size[1]} pixels)")
        return "", ""
    if size and kind != "image/gif" and (max(size) > MOST_PX or path.stat().st_size > MOST_IMAGE):
        data, shown = _reduced(path)
        if data:
            kind, said = "image/jpeg", f"shown at {shown[0]}x{shown[1]} of {size[0]}x{size[1]}: the whole is {path}"
    if not shelf.take(path, len(data) or path.stat().st_size):
        return "", ""
    source = f"data:{kind};base64,{base64.b64encode(data or path.read_bytes()).decode()}"
    place = f' width="{size[0]}" height="{size[1]}"' if size else ""
    return f'<img src="{source}"{place} loading="lazy" alt="{html.escape(name, quote=True)}">', said


def _pixels(path: Path) -> tuple[int, int] | None:
    """Width and height, from the head of the file; None where it is no image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _reduced(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A JPEG whose longer side is at most ``SHOWN_PX``, and its size; empty where the image is damaged."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (SHOWN_PX, SHOWN_PX))
            image = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError):
        return b"", (0, 0)
    image.thumbnail((SHOWN_PX, SHOWN_PX))
    sheet = Image.new("RGB", image.size, "white")
    sheet.paste(image, mask=image)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue(), sheet.size


def _video(path: Path, name: str, shelf: Shelf) -> tuple[str, str]:
    """The element, with its rate for whoever steps through it, and size, frames and rate in words."""
    if not shelf.take(path, path.stat().st_size):
        return "", ""
    source = f"data:{VIDEOS[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    rate, said = _film_facts(path)
    label = html.escape(name, quote=True)
    attributes = f'data-rate="{rate:g}" aria-label="{label}"'
    return f'<video controls loop muted playsinline preload="auto" src="{source}" {attributes}></video>', said


def _film_facts(path: Path) -> tuple[float, str]:
    """Frames a second (0: unknown) and a few words; nothing of a file that is no film."""
    import av

    try:
        with av.open(f"file:{path}") as container:
            stream = container.streams.video[0]
            rate, number = float(stream.average_rate or 0), stream.frames
            return rate, f"{stream.width}x{stream.height}, {number or '?'} frames at {rate:g} a second"
    except (av.FFmpegError, OSError, IndexError, ValueError):
        return 0.0, ""
