"""A long film as phones make it through ``enhance-video``: is memory flat, and is sound in step at the end?

    python tests/hour.py [--minutes 60] [--height 1080] [--scale 0.5] [--keep FOLDER] [--write OUT.json]

Every frame has a time of its own (30 a second in the mean, off by up to 4 ms, some left out), the sound is AAC. Once in
eight seconds, at a whole frame of the output, the picture is white and a tone begins; in the result both are looked for
again. Made of a loop that is encoded once. Exits with 1 where the memory of the second half of the work rises by more
than 5 %, a flash or a tone is lost, or they are apart by 20 ms or more.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.data.videos import moving
from toolkit.runs.machine import git_commit, machine

START = "import sys; from toolkit.cli import main; sys.exit(main())"
RATE, LOOP_S, TONE_S, SOUND_RATE = 30, 8, 0.2, 48_000
MOST_APART_S, MOST_GROWTH = 0.02, 0.05


def make(path: Path, loops: int, height: int) -> int:
    """Write the film; returns how many frames it has."""
    width = height * 16 // 9 // 2 * 2
    draw = random.Random(0)
    with av.open(str(path), "w") as out, tempfile.TemporaryDirectory() as folder:
        loop = Path(folder) / "loop.mp4"
        write_loop(loop, width, height)
        with av.open(str(loop)) as source:
            packets = [packet for packet in source.demux(video=0) if packet.size]
            video = out.add_stream_from_template(source.streams.video[0])
            video.time_base = Fraction(1, 90_000)
            audio = out.add_stream("aac", rate=SOUND_RATE, layout="stereo")
            audio.bit_rate = 128_000
            count = 0
            for number in range(loops):
                for index, packet in enumerate(packets):
                    left_out = draw.random() < 0.01  # by the phone; no frame is built upon another
                    if left_out and 0 < index < len(packets) - 1:  # or the next one would be the nearest for long
                        continue
                    at = number * LOOP_S + Fraction(index, RATE) + (Fraction(draw.randint(-4, 4), 1000) if index else 0)
                    again = av.Packet(bytes(packet))
                    again.stream, again.is_keyframe = video, packet.is_keyframe
                    again.time_base = video.time_base
                    again.pts = again.dts = round(at / video.time_base)
                    out.mux(again)
                    count += 1
                for encoded in sounds(audio, number):
                    out.mux(encoded)
            for encoded in audio.encode(None):
                out.mux(encoded)
    return count


def write_loop(path: Path, width: int, height: int) -> None:
    """Eight seconds of which each frame can be left out; the first one is white."""
    small = moving(RATE * LOOP_S, width // 4, height // 4)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "g": "1", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, pixels in enumerate(small):
            shown = np.full_like(pixels, 255) if number == 0 else pixels // 2
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def sounds(stream: Any, number: int) -> list[Any]:
    """The packets of one loop's sound: a tone at its beginning, then silence."""
    at = np.arange(LOOP_S * SOUND_RATE)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * at / SOUND_RATE) * (at < TONE_S * SOUND_RATE)
    packets = []
    for first in range(0, len(at), 1024):  # 375 frames of AAC
        frame = av.AudioFrame.from_ndarray(
            np.stack([tone[first : first + 1024]] * 2).astype(np.float32), "fltp", "stereo"
        )
        frame.sample_rate, frame.pts = SOUND_RATE, number * len(at) + first
        packets += stream.encode(frame)
    return packets


def moments(path: Path) -> tuple[list[float], list[float]]:
    """(times at which the picture turns white, times at which a tone begins), in seconds."""
    flashes, onsets = [], []
    with av.open(str(path)) as container:
        was = False
        for frame in container.decode(video=0):
            is_white = bool(np.asarray(frame.to_ndarray(format="gray")[::16, ::16]).mean() > 200)
            if is_white and not was:
                flashes.append(float(frame.time))
            was = is_white
    with av.open(str(path)) as container:
        last = -1.0
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()).max(0) > 0.1)
            if len(loud):
                begin = float(frame.time) + float(loud[0]) / frame.sample_rate
                if begin - last > 1:
                    onsets.append(begin)
                last = float(frame.time) + float(loud[-1]) / frame.sample_rate
    return flashes, onsets


def enhance(source: Path, target: Path, folder: Path, scale: float) -> tuple[float, list[tuple[float, float]]]:
    """Run the command; returns its seconds, and (seconds, MiB) of its memory as it went."""
    words = ["experiment=enhance_classic", f"input={source}", f"output={target}", f"scale={scale}", f"fps={RATE}"]
    words += ["encode.speed=ultrafast", "side_by_side_s=0", f"hydra.run.dir={folder}", "num_threads=1"]
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", START, "enhance-video", *words])
    memory: list[tuple[float, float]] = []

    def watch() -> None:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
                memory.append((round(time.monotonic() - started, 1), round(kib / 1024, 1)))
            except (OSError, StopIteration):
                pass
            time.sleep(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        sys.exit(f"enhance-video ended with {code}")
    return time.monotonic() - started, memory


def measure(minutes: float, height: int, scale: float, folder: Path) -> dict[str, Any]:
    """Make the film, enhance it, look at the result."""
    loops = max(2, round(minutes * 60 / LOOP_S))
    source, target = folder / "phone.mp4", folder / "made.mp4"
    frames = make(source, loops, height)
    seconds, memory = enhance(source, target, folder / "run", scale)
    flashes, onsets = moments(target)
    true = [number * LOOP_S for number in range(loops)]
    apart = [tone - flash for tone, flash in zip(onsets, flashes, strict=False)]
    half = [mib for at, mib in memory if at > seconds / 2]
    parts = [max(half[: len(half) // 2], default=0), max(half[len(half) // 2 :], default=0)]
    return {
        "minutes": loops * LOOP_S / 60,
        "height": height,
        "scale": scale,
        "frames_of_input": frames,
        "seconds": round(seconds, 1),
        "peak_memory_mib": max((mib for _, mib in memory), default=0),
        "memory_mib_third_and_fourth_quarter": parts,
        "flashes": [len(flashes), loops],
        "tones": [len(onsets), loops],
        "sound_after_picture_s": {"first": apart[0], "last": apart[-1], "most": max(apart, key=abs)},
        "picture_off_its_time_s": max(abs(seen - at) for seen, at in zip(flashes, true, strict=False)),
        "memory": memory[:: max(1, len(memory) // 60)],
    }


def main() -> None:
    """Measure, print, write, and say with the exit code whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(given.minutes, given.height, given.scale, folder)
    found = {"git_commit": git_commit(), "machine": machine(), **found}
    text = json.dumps(found, indent=1)
    print(text)
    if given.write:
        given.write.write_text(text + "\n", encoding="utf-8")
    before, after = found["memory_mib_third_and_fourth_quarter"]
    holds = after <= (1 + MOST_GROWTH) * before and abs(found["sound_after_picture_s"]["most"]) < MOST_APART_S
    sys.exit(0 if holds and all(seen == true for seen, true in (found["flashes"], found["tones"])) else 1)


if __name__ == "__main__":
    main()
