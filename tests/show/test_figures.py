import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.show import figures
from toolkit.show.table import Spread

X = np.geomspace(0.01, 80, 12)


def draw_curves(path):
    series = {"no latents": (X, X**0.5), "with z": (X, X**0.4, X**0.4 * 0.9, X**0.4 * 1.1)}
    return figures.curves(
        path, series, xlabel="σ", ylabel="MSE", logx=True, logy=True, caption="Loss at σ = 1, with bands"
    )


def draw_bars(path):
    values = {"ours": Spread(1.2, 0.1, 3), "baseline": 2.0, "floor": Spread(0.5, float("nan"), 1)}
    return figures.bars(path, values, ylabel="Fréchet distance", caption="Loss at σ = 1, with bands")


def draw_scatter(path):
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    return figures.scatter(path, points, torch.arange(100) % 8, limit=4, caption="Loss at σ = 1, with bands")


def draw_grid(path):
    images = torch.linspace(-1.5, 1.5, 7 * 3 * 8 * 8).reshape(7, 3, 8, 8).to(torch.bfloat16)
    labels = {"row_labels": ["cfg 0", "cfg 1.5"], "column_labels": ["σ=1", "b", "c", "d"]}
    return figures.image_grid(path, images, columns=4, **labels, caption="Loss at σ = 1, with bands")


@pytest.mark.parametrize("draw", [draw_curves, draw_bars, draw_scatter, draw_grid])
def test_same_input_gives_the_same_bytes_and_the_caption_is_inside(draw, tmp_path):
    first, second = draw(tmp_path / "a.png"), draw(tmp_path / "sub" / "b.png")
    assert first.read_bytes() == second.read_bytes()
    assert figures.read_caption(first) == "Loss at σ = 1, with bands"
    with Image.open(first) as image:
        assert min(image.size) > 100
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_grid_places_pixels_by_nearest_neighbour(tmp_path):
    images = np.stack([np.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 5.0, -1.0)])
    images[4, 0, 0, 1] = 1.0
    with Image.open(figures.image_grid(tmp_path / "grid.png", images, columns=2, scale=10)) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (3 * 22 - 2, 2 * 22 - 2, 3)
    centres = {(0, 0): 0, (0, 1): 128, (1, 0): 255, (1, 1): 255}
    assert all((pixels[22 * r + 10, 22 * c + 10] == value).all() for (r, c), value in centres.items())
    assert (pixels[44:54, 0:10] == 0).all()
    assert (pixels[44:54, 10:20] == 255).all()


def test_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected \\(N, 1 or 3, H, W\\)"):
        figures.image_grid(tmp_path / "a.png", np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match="image 1 holds NaN"):
        figures.image_grid(tmp_path / "a.png", np.array([0.0, np.nan])[:, None, None, None])
    with pytest.raises(ValueError, match="curve 'c': give x, y or"):
        figures.curves(tmp_path / "a.png", {"c": ([1, 2], [1])}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="expected \\(5,\\)"):
        figures.scatter(tmp_path / "a.png", np.zeros((5, 2)), np.zeros(4))
    assert list(tmp_path.iterdir()) == []


def test_import_is_light():
    code = "import sys, toolkit.show.figures; print([m for m in ('torch', 'matplotlib', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
