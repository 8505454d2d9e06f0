"""What `toolkit measure` says beside the official scripts' formulas, for docs/measure.md. Not collected: a minute.

    python -m tests.measure.agreement [RECORD.json]

Images: crops of scikit-learn's two photographs, through Inception with drawn weights (whose answers tests/zoo compares
with torch-fidelity's network). Clips: drawn, through a small network in the place of I3D. The formulas are those that
the tests beside this file write out in NumPy and SciPy: EDM's fid.py, ADM's evaluator, iVideoGPT's video_metric.py.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from tests.measure.test_job import adm_precision, adm_score, edm_fid
from tests.measure.test_videos import Toy, clips, fvd
from tests.zoo.golden import golden_tensor
from toolkit.measure.job import Plan, measure_images
from toolkit.measure.videos import VideoPlan, measure_videos
from toolkit.zoo.inception import Inception, load_inception

NUM, SIZE_PX, BATCH = 48, 64, 16


def drawn_weights(path):
    """Inception's, each tensor drawn by its name; variances positive."""
    names = {name: one for name, one in Inception().state_dict().items() if not name.endswith("num_batches_tracked")}
    drawn = {name: golden_tensor(name, list(one.shape)) for name, one in names.items()}
    save_file({name: one.abs() + 0.5 if name.endswith("running_var") else one for name, one in drawn.items()}, path)
    return path


def crops(name):
    """uint8 (NUM, SIZE_PX, SIZE_PX, 3)."""
    photograph, draw = load_sample_image(name), np.random.RandomState(0)
    corners = [[draw.randint(0, side - SIZE_PX) for side in photograph.shape[:2]] for _ in range(NUM)]
    return np.stack([photograph[row : row + SIZE_PX, column : column + SIZE_PX] for row, column in corners])


@torch.no_grad()
def features(weights, images):
    """pool, spatial, logits in float64, by numpy."""
    network, batches = load_inception(weights)[0], torch.from_numpy(images).permute(0, 3, 1, 2).split(BATCH)
    found = zip(*(network(batch) for batch in batches), strict=True)
    return [torch.cat(one).double().numpy() for one in found]


def of_images(folder):
    weights, sets = (
        drawn_weights(folder / "weights.safetensors"),
        [crops(f"{name}.jpg") for name in ("china", "flower")],
    )
    paths = [folder / "samples.npz", folder / "reference.npz"]
    for path, images in zip(paths, sets, strict=True):
        np.savez(path, images)
    ours = measure_images(Plan(*paths, weights, batch_size=BATCH))["metrics"]
    (pool, spatial, logits), (real, real_spatial, _) = (features(weights, images) for images in sets)
    theirs = {
        "frechet_distance": edm_fid(pool, real),
        "spatial_frechet_distance": edm_fid(spatial, real_spatial),
        "class_score": adm_score(logits),
        "precision": adm_precision(pool, real),
        "recall": adm_precision(real, pool),
    }
    return {name: (ours[name], theirs[name]) for name in theirs}


def of_clips(folder):
    torch.jit.script(Toy()).save(str(folder / "i3d.pt"))
    made, real = clips(12, 0), clips(6, 1)
    np.savez(folder / "made.npz", made)
    np.savez(folder / "real.npz", real)
    plan = VideoPlan(folder / "made.npz", folder / "real.npz", folder / "i3d.pt")
    measure_videos(plan, folder / "out.json")
    return {"fvd": (json.loads((folder / "out.json").read_text())["metrics"]["fvd"], fvd(made, real))}


def main():
    with tempfile.TemporaryDirectory() as name:
        pairs = of_images(Path(name)) | of_clips(Path(name))
    found = {name: {"ours": float(ours), "formula": float(other)} for name, (ours, other) in pairs.items()}
    for row in found.values():
        row["relative_difference"] = abs(row["ours"] - row["formula"]) / max(abs(row["formula"]), 1e-12)
    print(json.dumps(found, indent=1))
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps({"num_images": NUM, "size_px": SIZE_PX} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
