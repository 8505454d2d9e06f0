"""What the classic backend needs beyond the started process, by frame size: MiB at the peak, on one thread.

    python experiments/venhancer/classic_memory.py OUT.json

Four frames are read, made at twice the rate in their own size, and encoded (h264, medium). Each size is a forked
process of its own: ``scan`` is what looking at the file adds, ``made`` what making all frames adds, ``encoded`` what
making and encoding them adds; ``frame`` is one frame of 8-bit RGB.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import Encoding, write_part
from toolkit.plain_files import read_object
from toolkit.runs.device import keep_freed_memory
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine
from toolkit.venhancer.clips.backends import ClassicBackend
from toolkit.venhancer.clips.timeline import make_timeline
from toolkit.venhancer.config import Classic

HEIGHTS = (540, 1080, 2160)
FRAMES = 4


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_film(path: Path, width: int, height: int) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        y, x = np.mgrid[: height // 4, : width // 4]
        for number in range(FRAMES):  # a texture that moves by six pixels a frame
            grey = 127 + 40 * (np.sin((x - 1.5 * number) / 3) + np.cos(y / 4))
            frame = av.VideoFrame.from_ndarray(grey.astype(np.uint8), format="gray").reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def measure(path: Path, width: int, height: int, out: Path) -> None:
    keep_freed_memory()
    started = peak_mib()
    index = index_video(path)
    found = {"frame_mib": 3 * width * height / 2**20, "scan_mib": peak_mib() - started}
    timeline = make_timeline(index, index.rate * 2)
    backend = ClassicBackend(VideoReader(index), width, height, Classic(), "cpu")
    for _ in backend.frames(timeline.shots[0], 0):
        pass
    found["made_mib"] = peak_mib() - started
    write_part(out.with_suffix(".mp4"), backend.frames(timeline.shots[0], 0), Encoding(width, height, timeline.rate))
    found["encoded_mib"] = peak_mib() - started
    write_json(out, {key: round(value, 1) for key, value in found.items()})


def main(out: str) -> None:
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for height in HEIGHTS:
            path, found = Path(scratch) / f"{height}.mkv", Path(scratch) / f"{height}.json"
            for step in (write_film, measure):
                child = os.fork()
                if child == 0:
                    step(path, height * 16 // 9, height, *([found] if step is measure else []))
                    os._exit(0)
                os.waitpid(child, 0)
            results[f"rows_{height}"] = read_object(found)
    record = {"command": f"python experiments/venhancer/{Path(__file__).name}", "git_commit": git_commit()}
    write_json(Path(out), record | {"machine": machine(), "frames": FRAMES, "results": results})


if __name__ == "__main__":
    main(*sys.argv[1:])
