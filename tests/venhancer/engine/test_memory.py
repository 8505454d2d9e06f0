"""T15: memory does not grow with the clip's length, and with the frame's size only by the frames handed out."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, resource, sys, tempfile
from pathlib import Path
from tests.venhancer.networks import clip, tiny_pipeline
from toolkit.venhancer.engine.enhancer import Enhancer
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.pipeline import ArraySource

def peak_mib(num_frames, height, width):
    settings = EnhanceSettings(height=height, width=width, chunk_mib=1).changed(
        num_steps=1, solver="ddim", num_frames=5, tile_height_px=96, tile_width_px=128
    )
    source = ArraySource(clip(num_frames, 12, 16))
    enhancer = Enhancer(tiny_pipeline(), settings)
    with tempfile.TemporaryDirectory() as folder:
        made = sum(len(chunk.frames) for chunk in enhancer.enhance(source, Path(folder)))
        disk = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
    assert made == num_frames
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, disk

print(json.dumps([peak_mib(9, 96, 128), peak_mib(29, 96, 128), peak_mib(5, 288, 384)]))
"""


def test_memory_is_flat_in_length_and_in_frame_size():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    short, long, large = json.loads(done.stdout.splitlines()[-1])
    assert long[0] - short[0] < 8
    assert abs(long[1] - short[1]) < 0.01  # what is in flight lies on disk, and is as much for the long clip
    assert large[1] > 4 * short[1]  # nine times the pixels, and most of them, ...
    assert large[0] - short[0] < 24  # ... are on disk, not in memory
