"""What a run works on: files, folders and clips by name; where results go; how large and how fast they become."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from toolkit.data.video.clips import CLIPS, clip_path, videos_in
from toolkit.data.video.reader import VideoIndex
from toolkit.data.video.write import MOST_SIDE_PX, container_of
from toolkit.errors import UserError, did_you_mean
from toolkit.venhancer.config import LEAST_SIDE_PX, MOST_SCALE, EnhanceVideo

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
    path = Path(config.input).expanduser()
    if path.is_dir():
        return _folder_tasks(config, path, samples)
    source = _one_source(config.input, path)
    output = Path(config.output).expanduser() if config.output else samples / f"{source.stem}.mp4"
    if config.output and output.is_dir():
        output = output / f"{source.stem}.mp4"
    reference = Path(config.reference).expanduser() if config.reference else None
    task = Task(source.stem, source, output, reference)
    _check_output(task, config)
    return [task]


def _one_source(text: str, path: Path) -> Path:
    if path.exists() or os.sep in text or path.suffix:
        return path  # a missing file is named when it is opened
    if text not in CLIPS:
        raise UserError(f"input={text}: no such file or folder, nor a clip; {did_you_mean(text, CLIPS)}"
                        f"clips are {', '.join(CLIPS)}")  # fmt: skip
    return clip_path(text)


def _folder_tasks(config: EnhanceVideo, folder: Path, samples: Path) -> list[Task]:
    outputs = Path(config.output).expanduser() if config.output else samples
    if outputs.is_file():
        raise UserError(f"output={config.output}: is a file; input={config.input} is a folder and needs one")
    if outputs.resolve() == folder.resolve():
        raise UserError(f"output={config.output}: is the input's folder; give another one")
    references = Path(config.reference).expanduser() if config.reference else None
    if references and not references.is_dir():
        raise UserError(f"reference={config.reference}: input={config.input} is a folder; so must be the reference")
    tasks = []
    for source in videos_in(folder, "input"):
        name = str(source.relative_to(folder).with_suffix("")).replace(os.sep, "__")
        reference = references / source.relative_to(folder) if references else None
        tasks.append(Task(name, source, outputs / f"{name}.mp4", reference))
    doubles = {task.name for task in tasks if sum(other.name == task.name for other in tasks) > 1}
    if doubles:
        raise UserError(f"input={folder}: two files are called {min(doubles)}, only their suffixes differ; rename one")
    for task in tasks:
        _check_output(task, config)
    return tasks


def _check_output(task: Task, config: EnhanceVideo) -> None:
    container_of(task.output)
    if task.output.exists() and task.output.resolve() == task.source.resolve():
        raise UserError(f"output={task.output}: is the input; the input is never written to")
    if task.output.is_dir():
        raise UserError(f"output={task.output}: is a folder")
    above = task.output.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"output={task.output}: {above} cannot be written into")


def check_free(task: Task, config: EnhanceVideo) -> None:
    """Refuse an output that is there already. Raises UserError."""
    if task.output.exists() and not config.overwrite:
        raise UserError(f"output={task.output}: exists already; give another name or overwrite=true")


def make_folder(task: Task) -> None:
    """The folder that the output goes to. Raises UserError where it cannot be made (tried, not guessed)."""
    try:
        task.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={task.output}: its folder cannot be made ({(error.strerror or '').lower()})") from None


def output_size(
    config: EnhanceVideo, index: VideoIndex, before_degrade: tuple[int, int] | None = None
) -> tuple[int, int, str, str]:
    """``(width, height, pix_fmt, note)`` of the result; the note says where a side was moved, else it is empty.

    ``before_degrade``: the (width, height) to go back to where the config names no size. Raises UserError for scales
    that the backend cannot do, and for odd sides with yuv420p.
    """
    exact = _exact_size(config, index, before_degrade)
    width, height = (round(side) for side in exact)
    pix_fmt = "yuv420p" if config.encode.pix_fmt == "auto" else config.encode.pix_fmt
    if pix_fmt == "yuv444p" or (width % 2 == 0 and height % 2 == 0):
        return width, height, pix_fmt, ""
    even = (_even(exact[0]), _even(exact[1]))
    if config.encode.pix_fmt == "yuv420p":
        raise UserError(
            f"encode.pix_fmt=yuv420p: needs even sides, the result has {width}x{height}; "
            "use auto (the next even size) or yuv444p"
        )
    note = f"{width}x{height} becomes {even[0]}x{even[1]}: 4:2:0 has even sides only (encode.pix_fmt=yuv444p keeps odd)"
    return *even, pix_fmt, note


def _exact_size(config: EnhanceVideo, index: VideoIndex, before_degrade: tuple[int, int] | None) -> tuple[float, float]:
    if config.width or config.height:
        width = config.width or config.height * index.width / index.height  # type: ignore[operator]
        height = config.height or config.width * index.height / index.width  # type: ignore[operator]
        sides = [("width", width, index.width), ("height", height, index.height)]
        for key, side, before in sides if config.width else sides[::-1]:
            least = config.least_scale
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
        raise UserError(f"{key}: frames of {width}x{height} need about {gib(need)}, {gib(free)} are free; {fits}")


def frame_bytes(index: VideoIndex, width: int, height: int) -> int:
    """Memory that work on one frame takes, whatever the clip's length."""
    return 3 * (4 * WORKING_COPIES * index.width * index.height + OUTPUT_COPIES * width * height)


def available_bytes() -> int:
    """Memory that is free to use, also under a container's limit; ``$TOOLKIT_MEMORY_GIB`` overrides it."""
    told = os.environ.get("TOOLKIT_MEMORY_GIB")
    if told:
        return int(float(told) * 2**30)
    found = [_meminfo()]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        found.append(int(text) - int(used.read_text(encoding="utf-8")))
    return max(0, min(found))


def _meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.1f} GiB"


def rate_text(rate: Fraction) -> str:
    """24 or 30000/1001 (29.97)."""
    return str(rate) if rate.denominator == 1 else f"{rate} ({float(rate):.5g})"
