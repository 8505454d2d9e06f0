"""What x264's look-ahead costs in memory, and what it brings: 72 frames of Big Buck Bunny at 1920x1080, preset medium.

    python experiments/venhancer/encoder_memory.py experiments/venhancer/encoder_memory.json

Each setting in a process of its own: MiB that encoding adds at its peak, bytes of the file, PSNR of the luma of every
sixth frame, seconds of processor time. A shorter look-ahead is tried at a lower CRF too, for an equal PSNR.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from toolkit.data.video.clips import clip_path
from toolkit.metrics.video import decibel
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine

SETTINGS = {  # x264's parameters beside ours, CRF
    "as it is": ("threads=6", 17.0),
    "look-ahead 20": ("threads=6:rc-lookahead=20", 17.0),
    "look-ahead 20, lower CRF": ("threads=6:rc-lookahead=20", 16.2),
    "look-ahead 10": ("threads=6:rc-lookahead=10", 17.0),
    "look-ahead 10, lower CRF": ("threads=6:rc-lookahead=10", 14.5),
    "two threads": ("threads=2", 17.0),
    "slices in place of frames, look-ahead 10": ("threads=6:sliced-threads=1:rc-lookahead=10", 17.0),
}
WIDTH, HEIGHT, NUM_FRAMES, RATE, FROM_S = 1920, 1080, 72, 24, 100


def resident_mib(what: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(what)) / 1024


def film() -> list[np.ndarray]:
    """Its frames at their own size, 4:2:0."""
    with av.open(str(clip_path("bbb"))) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        container.seek(FROM_S * av.time_base)
        return [frame.to_ndarray(format="yuv420p") for frame in itertools.islice(container.decode(stream), NUM_FRAMES)]


def measure(parameters: str, crf: float) -> dict[str, float]:
    """Encode, read again, compare."""
    frames, resize = film(), av.video.reformatter.VideoReformatter()

    def enlarged(planes: np.ndarray) -> av.VideoFrame:
        return resize.reformat(av.VideoFrame.from_ndarray(planes, format="yuv420p"), WIDTH, HEIGHT, "yuv420p")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.mp4"
        before = resident_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        began = time.process_time()
        with av.open(str(path), "w") as out:
            options = {"crf": str(crf), "preset": "medium", "g": "250", "x264-params": f"{parameters}:open-gop=0"}
            stream = out.add_stream("libx264", rate=RATE, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number, planes in enumerate(frames):
                frame = enlarged(planes)
                frame.pts, frame.time_base = number, Fraction(1, RATE)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        seconds, added = time.process_time() - began, resident_mib("VmHWM") - before
        errors = []
        with av.open(str(path)) as made:
            for number, frame in enumerate(made.decode(video=0)):
                if number % 6 == 0:
                    true = enlarged(frames[number]).to_ndarray()[:HEIGHT].astype(float)
                    errors.append(float(np.square(true - frame.to_ndarray()[:HEIGHT]).mean()))
        kib = path.stat().st_size / 1024
    found = {"added_mib": added, "kib": kib, "psnr_luma": decibel(float(np.mean(errors))), "cpu_s": seconds}
    return {key: round(value, 2) for key, value in found.items()}


def main(out: Path) -> None:
    results: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        words = [sys.executable, __file__, "--one", json.dumps(setting)]
        results[name] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
        print(name, results[name], flush=True)
    write_json(out, {"git_commit": git_commit(), "machine": machine(), "settings": SETTINGS, "results": results})


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main(Path(sys.argv[1]))
