"""What a run works on: files, folders and clips by name; where results go; how large and how fast they become."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from toolkit.data.video.clips import CLIPS, clip_path, has_videos, videos_in
from toolkit.data.video.pictures import PICTURES
from toolkit.data.video.reader import VideoIndex
from toolkit.data.video.sequence import GUESSED_RATE, find_sequence
from toolkit.data.video.tone import HDR_TRANSFERS
from toolkit.data.video.write import MOST_SIDE_PX, can_encode, container_of, is_taken
from toolkit.errors import UserError, bytes_text, did_you_mean
from toolkit.plain_files import named_path
from toolkit.runs.machine import memory_bytes
from toolkit.venhancer.config import LEAST_SCALE, LEAST_SIDE_PX, EnhanceVideo, parse_fps
from toolkit.venhancer.train.config import MOST_SCALE

WORKING_COPIES = 14  # float copies of an input frame that motion estimation holds at its peak
OUTPUT_COPIES = 6  # byte copies of an output frame: resized, converted, in the encoder


@dataclass(frozen=True)
class Task:
    """One clip: ``name`` is unique in the run."""

    name: str
    source: Path
    output: Path
    reference: Path | None


def find_tasks(config: EnhanceVideo, samples: Path) -> list[Task]:
    """The clips of ``config.input`` and their outputs, ``samples`` being the run's own folder for them.

    Raises UserError for a missing input, an output that exists already, and names that cannot be written.
    """
    assert config.input is not None
    path = named_path(config.input)
    pictures = None if path.is_dir() and has_videos(path) else find_sequence(path)
    if path.is_dir() and not pictures:
        return _folder_tasks(config, path, samples)
    source = path if pictures else _one_source(config.input, path)
    name = pictures.name if pictures else source.stem
    file = _file_of(name, config)
    output = named_path(config.output) if config.output else samples / file
    if output.is_dir() and config.encode.codec != "png":
        output = output / file
    reference = named_path(config.reference) if config.reference else None
    task = Task(name, source, output, reference)
    _check_output(task, config)
    return [task]


def _file_of(name: str, config: EnhanceVideo) -> str:
    """The default name of a clip's result; numbered images go into a folder."""
    return name if config.encode.codec == "png" else f"{name}.mp4"


def picture_rate(task: Task, config: EnhanceVideo) -> Fraction:
    """Of numbered pictures the rate that is asked for; a file has its own. Raises UserError where there is none."""
    if not find_sequence(task.source):
        if config.input_fps:
            raise UserError(f"input_fps={config.input_fps}: {task.source} has a rate of its own; fps is what to write")
        return GUESSED_RATE
    if text := config.input_fps or config.fps:
        return parse_fps(text)
    raise UserError(f"input={task.source}: numbered pictures have no rate; give fps=24, or input_fps=24 and fps=48")


def _one_source(text: str, path: Path) -> Path:
    if path.exists() or os.sep in text or path.suffix:
        return path  # a missing file is named when it is opened
    if text not in CLIPS:
        raise UserError(f"input={text}: no such file or folder, nor a clip; {did_you_mean(text, CLIPS)}"
                        f"clips are {', '.join(CLIPS)}")  # fmt: skip
    return clip_path(text)


def _folder_tasks(config: EnhanceVideo, folder: Path, samples: Path) -> list[Task]:
    outputs = named_path(config.output) if config.output else samples
    if outputs.is_file():
        raise UserError(f"output={config.output}: is a file; input={config.input} is a folder and needs one")
    if outputs.resolve() == folder.resolve():
        raise UserError(f"output={config.output}: is the input's folder; give another one")
    references = named_path(config.reference) if config.reference else None
    if references and not references.is_dir():
        raise UserError(f"reference={config.reference}: input={config.input} is a folder; so must be the reference")
    tasks = []
    for source in videos_in(folder, "input"):
        name = str(source.relative_to(folder).with_suffix("")).replace(os.sep, "__")
        reference = references / source.relative_to(folder) if references else None
        tasks.append(Task(name, source, outputs / _file_of(name, config), reference))
    names = Counter(task.name for task in tasks)
    if doubles := [name for name, count in names.items() if count > 1]:
        both = ", ".join(str(task.source) for task in tasks if task.name == min(doubles))
        raise UserError(f"input={folder}: the results of {both} would have one name, {min(doubles)}; rename one")
    for task in tasks:
        _check_output(task, config)
    return tasks


def _check_output(task: Task, config: EnhanceVideo) -> None:
    if task.output.exists() and task.output.resolve() in (task.source.resolve(), task.source.resolve().parent):
        raise UserError(f"output={task.output}: is the input; the input is never written to")
    if config.encode.codec != "png":
        container_of(task.output)
        if task.output.is_dir():
            raise UserError(f"output={task.output}: is a folder")
    elif task.output.suffix or task.output.is_file():
        raise UserError(f"output={task.output}: with encode.codec=png it is a folder, as in output=frames")
    above = task.output.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"output={task.output}: {above} cannot be written into")


def check_free(task: Task, config: EnhanceVideo) -> None:
    """Refuse an output that is there already. Raises UserError."""
    if is_taken(task.output) and not config.overwrite:
        raise UserError(f"output={task.output}: exists already; give another name or overwrite=true")
    if task.output.is_dir() and {*task.output.iterdir()} - {*task.output.glob(PICTURES)}:
        raise UserError(f"output={task.output}: holds other files than numbered pictures; give another folder")


def output_size(
    config: EnhanceVideo, index: VideoIndex, before_degrade: tuple[int, int] | None = None
) -> tuple[int, int, str, str]:
    """``(width, height, pix_fmt, note)`` of the result; the note says where a side was moved, else it is empty.

    ``before_degrade``: the (width, height) to go back to where the config names no size. Raises UserError for scales
    that the backend cannot do, and for odd sides with yuv420p.
    """
    exact = _exact_size(config, index, before_degrade)
    width, height = (round(side) for side in exact)
    pix_fmt = output_format(config, index)
    if not pix_fmt.startswith("yuv420") or (width % 2 == 0 and height % 2 == 0):
        return width, height, pix_fmt, ""
    even = (_even(exact[0]), _even(exact[1]))
    if config.encode.pix_fmt != "auto":
        raise UserError(
            f"encode.pix_fmt={pix_fmt}: needs even sides, the result has {width}x{height}; "
            "use auto (the next even size) or yuv444p"
        )
    note = f"{width}x{height} becomes {even[0]}x{even[1]}: 4:2:0 has even sides only (encode.pix_fmt=yuv444p keeps odd)"
    return *even, pix_fmt, note


def output_format(config: EnhanceVideo, index: VideoIndex) -> str:
    """FFmpeg's name of the pixels to write. Raises UserError where the encoder, as it was built, lacks them."""
    encode = config.encode
    if encode.pix_fmt != "auto":
        asked = "rgb48be" if encode.pix_fmt == "rgb48" else encode.pix_fmt
        if not can_encode(encode.codec, asked):
            raise UserError(f"encode.pix_fmt={encode.pix_fmt}: FFmpeg here was built with an encoder that lacks it")
        return asked
    is_deep = index.bits > 8 and config.backend != "generative"
    if encode.codec == "png":
        return "rgb48be" if is_deep and not index.is_toned else "rgb24"
    keeps = is_deep and encode.codec == "hevc" and index.transfer in HDR_TRANSFERS and not index.is_toned
    return "yuv420p10le" if keeps and can_encode("hevc", "yuv420p10le") else "yuv420p"


def _exact_size(config: EnhanceVideo, index: VideoIndex, before_degrade: tuple[int, int] | None) -> tuple[float, float]:
    if config.width or config.height:
        width = config.width or config.height * index.width / index.height  # type: ignore[operator]
        height = config.height or config.width * index.height / index.width  # type: ignore[operator]
        sides = [("width", width, index.width), ("height", height, index.height)]
        for key, side, before in sides if config.width else sides[::-1]:
            least = 1 if config.backend == "generative" else LEAST_SCALE
            if not least * 0.999 <= side / before <= MOST_SCALE * 1.001:
                raise UserError(
                    f"{key}={side:.0f}: is {side / before:.3g} times the input's {before}; "
                    f"scales from {least:g} to {MOST_SCALE:g} can be done"
                )
        return width, height
    if config.scale is None and before_degrade is not None:
        return before_degrade
    scale = config.scale or 2.0
    return index.width * scale, index.height * scale


def _even(side: float) -> int:
    return max(2, 2 * round(side / 2))


def check_size(config: EnhanceVideo, index: VideoIndex, width: int, height: int) -> None:
    """Refuse what an encoder cannot hold or memory cannot carry, naming what would fit. Raises UserError."""
    key = f"scale={config.scale}" if config.scale else "width, height"
    if min(index.width, index.height) < LEAST_SIDE_PX:
        raise UserError(
            f"input={index.path}: {index.width}x{index.height} is too small; sides of {LEAST_SIDE_PX} at least"
        )
    if min(width, height) < LEAST_SIDE_PX:
        raise UserError(f"{key}: {width}x{height} is too small; sides of {LEAST_SIDE_PX} at least")
    most = MOST_SIDE_PX[config.encode.codec]
    if max(width, height) > most:
        raise UserError(
            f"{key}: {width}x{height} is more than {config.encode.codec} can hold ({most} a side); "
            f"at most scale={most / max(index.width, index.height):.3g}"
        )
    need, free = frame_bytes(index, width, height), available_bytes()
    if need > free:
        fixed = frame_bytes(index, 0, 0)
        scale = ((free - fixed) / (3 * OUTPUT_COPIES * index.width * index.height)) ** 0.5 if free > fixed else 0.0
        fits = f"at most scale={scale:.3g} fits" if scale >= 1 else "the input itself is too large"
        raise UserError(
            f"{key}: frames of {width}x{height} need about {bytes_text(need)}, {bytes_text(free)} are free; {fits}"
        )


def frame_bytes(index: VideoIndex, width: int, height: int) -> int:
    """Memory that work on one frame takes, whatever the clip's length."""
    copies = OUTPUT_COPIES * (2 if index.deep else 1)
    return 3 * (4 * WORKING_COPIES * index.width * index.height + copies * width * height)


def available_bytes() -> int:
    """Memory that is free to use, also under a container's limit; ``$TOOLKIT_MEMORY_GIB`` overrides it."""
    told = os.environ.get("TOOLKIT_MEMORY_GIB")
    if told:
        try:
            return int(float(told) * 2**30)
        except (ValueError, OverflowError):
            raise UserError(f"TOOLKIT_MEMORY_GIB={told}: expected a number of GiB") from None
    return int(max(0, min(_meminfo(), _left_in_container(Path("/sys/fs/cgroup")))))


def _left_in_container(group: Path) -> float:
    """Bytes up to the limit of the control group ``group`` (version 2); infinite where it has none.

    Pages of files that were read and are not in use count as used there, but the kernel gives them back when asked.
    """
    try:
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return math.inf
    idle = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return int(limit) - used + idle if limit.isdigit() else math.inf


def _meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return memory_bytes()


def rate_text(rate: Fraction) -> str:
    """24 or 30000/1001 (29.97)."""
    return str(rate) if rate.denominator == 1 else f"{rate} ({float(rate):.5g})"
