"""The classic backend against FFmpeg's own filters (minterpolate, then Lanczos), in one process, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from toolkit.data.clips import clip_path
from toolkit.data.video import VideoReader
from toolkit.data.video_scan import index_video
from toolkit.runs.bench import Contender, Makers
from toolkit.venhancer.backends import ClassicBackend
from toolkit.venhancer.config import Classic
from toolkit.venhancer.timeline import Timeline, make_timeline

SCALE, FACTOR = 2.0, 2
MINTERPOLATE = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"  # the settings that its manual recommends
Scene = tuple[VideoReader, Timeline, int, int]


def makers(clip: str, num_frames: int) -> Makers:
    """Ours (motion compensation), plain blending, and FFmpeg's minterpolate and blend, on the same frames."""

    def ours(blend: bool) -> Contender:
        reader, timeline, width, height = scene(clip, num_frames)
        backend = ClassicBackend(reader, width, height, Classic(), "cpu", blend=blend)
        return Contender({"enhance": lambda: _count(f for shot in timeline.shots for f in backend.frames(shot, 0))})

    def ffmpeg(settings: str) -> Contender:
        prepared = scene(clip, num_frames)
        return Contender({"enhance": lambda: _count(ffmpeg_frames(*prepared, settings))})

    return {
        "ours": lambda: ours(blend=False),
        "blend": lambda: ours(blend=True),
        "ffmpeg": lambda: ffmpeg(MINTERPOLATE),
        "ffmpeg_blend": lambda: ffmpeg("mi_mode=blend"),
    }


def note(clip: str, num_frames: int) -> str:
    """What was done, under the table."""
    reader, _, width, height = scene(clip, num_frames)
    return (
        f"{clip}: {num_frames} frames of {reader.width}x{reader.height} to {width}x{height} at {FACTOR} times the rate"
    )


def scene(clip: str, num_frames: int) -> Scene:
    """The first frames of a clip, their timeline, and the output's size."""
    index = index_video(clip_path(clip), duration_s=num_frames / float(index_video(clip_path(clip), duration_s=1).rate))
    timeline = make_timeline(index, index.rate * FACTOR)
    return VideoReader(index), timeline, round(index.width * SCALE), round(index.height * SCALE)


def _count(frames: Iterator[np.ndarray]) -> float:
    return float(sum(1 for _ in frames))


def ffmpeg_frames(
    reader: VideoReader, timeline: Timeline, width: int, height: int, settings: str
) -> Iterator[np.ndarray]:
    """The same clip through FFmpeg's filters as uint8 RGB; where there is no next frame it makes none."""
    filters = f"minterpolate=fps={timeline.rate}:{settings}:scd=none,scale={width}:{height}:flags=lanczos,format=rgb24"
    graph = Graph()
    index = reader.index
    pixels = av.VideoFormat("yuv420p")
    source = graph.add_buffer(width=index.width, height=index.height, format=pixels, time_base=1 / index.rate)
    last = source
    for part in filters.split(","):
        name, _, arguments = part.partition("=")
        step = graph.add(name, arguments)
        last.link_to(step)
        last = step
    sink = graph.add("buffersink")
    last.link_to(sink)
    graph.configure()
    with av.open(str(Path(index.path))) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == index.num_frames:
                break
            frame.pts, frame.time_base = number, 1 / index.rate
            graph.push(frame)
            yield from _pull(graph)
    graph.push(None)
    yield from _pull(graph)


def _pull(graph: Graph) -> Iterator[np.ndarray]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame.to_ndarray(format="rgb24")
