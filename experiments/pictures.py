"""The pictures of README.md's first screen that are put together from others, and docs/gallery.md.

    python experiments/pictures.py

Nothing is run: world model, growth and enhancement each get one small picture out of those that runs left in their
folders, and the gallery names every picture's command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
INK, DIM, PAPER = "#222222", "#666666", "#ffffff"
BASE, GROWN = ("#0072B2", "#4f9fd0", "#9cc9e6"), ("#009E73", "#4fbd9c", "#9bdac6")  # as the curves beside them
GALLERY = (  # paper, picture, what it shows, the command that made it
    (
        "DisCo-Diff",
        "disco/faces/z_and_class.png",
        "Faces from the model that ships. Each column is a hair style; each row shares the discrete latents, which "
        "turn out to hold the colours of hair and skin.",
        "toolkit train-disco experiment=disco_faces_shipped",
    ),
    (
        "ICG and TSG",
        "icg/shipped/grid.png",
        "Every column starts from the same noise. The model ships and was trained without label dropping. Framed: the "
        "classifier reads another digit.",
        "toolkit sample-icg experiment=icg_shipped measure.enabled=true measure.num_samples=300",
    ),
    (
        "iVideoGPT",
        "ivideogpt/picture.png",
        "A simulated arm, and the same seconds as the world model imagines them: from the first frame and the actions, "
        "and from the opposite actions.",
        "toolkit train-ivideogpt experiment=ivideogpt_kuka",
    ),
    (
        "G_stack",
        "stacking/picture.png",
        "A small model is trained, its layers are copied on top of it, and training goes on. Held-out loss over "
        "compute, three seeds: the grown model is below scratch from the start. It overtakes the base that was simply "
        "trained on, but late.",
        "toolkit grow-llm",
    ),
    (
        "VEnhancer",
        "venhancer/picture.png",
        "Crops of a street clip at a quarter of its size and half its rate, enlarged and filled in. Upper row: a frame "
        "that the input lacks. Blending two frames shows both, motion compensation the right one.",
        "toolkit enhance-video",
    ),
)
HEAD = """# Gallery

The best picture of each paper and the command that made it. Records and more pictures are beside each in
[experiments/](../experiments). `python experiments/pictures.py` writes this page.
"""


def font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size_px)


def faces() -> Image.Image:
    """The first rows of the faces that share z."""
    sheet = Image.open(HERE / "disco" / "faces" / "z_and_class.png").convert("RGB")
    height = 5 * 66 - 2  # rows of 64 pixels and a gap, as toolkit/show/figures.py lays out
    return sheet.crop((0, 0, sheet.width, height))


def arm() -> Image.Image:
    """Rows of the roll-out on the Kuka arm: simulated, imagined, imagined under the opposite actions."""
    strip = Image.open(HERE / "ivideogpt" / "kuka_run" / "rollout.png").convert("RGB")
    cell, gap, label, num = 64, 2, 12, 8  # as toolkit/ivideogpt/film.py lays them out, at twice the size
    rows = {0: "simulated", 2: "imagined", 3: "imagined,\nopposite actions"}
    side, left = 96, 132
    sheet = Image.new("RGB", (left + num * (side + 3) - 3, len(rows) * (side + 5) - 5), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (row, name) in enumerate(rows.items()):
        top = place * (side + 5)
        draw.multiline_text((left - 10, top + side / 2), name, INK, font(14), anchor="rm", align="right")
        for column in range(num):
            x, y = column * (cell + gap), row * (label + cell + gap) + label
            frame = strip.crop((x, y, x + cell, y + cell)).resize((cell // 2, cell // 2), Image.Resampling.NEAREST)
            sheet.paste(frame.resize((side, side), Image.Resampling.NEAREST), (left + column * (side + 3), top))
    return sheet


def street() -> Image.Image:
    """Two crops of experiments/venhancer/default_run/crops.png: input, bicubic and blend, ours, truth."""
    crops = Image.open(HERE / "venhancer" / "default_run" / "crops.png").convert("RGB")
    width, height, step_x, step_y, band = 300, 200, 302, 202, 18  # as experiments/venhancer/crops.py lays them out
    last = crops.width // step_x - 1
    columns = {0: "input", 1: "enlarged and blended", 3: "enhance-video", last: "the original"}
    rows, shown = (1, 2), (225, 150)
    sheet = Image.new("RGB", (len(columns) * (shown[0] + 4) - 4, 24 + len(rows) * (shown[1] + 4) - 4), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (column, name) in enumerate(columns.items()):
        left = place * (shown[0] + 4)
        draw.text((left + shown[0] / 2, 11), name, INK, font(14), anchor="mm")
        for index, row in enumerate(rows):
            x, y = column * step_x, band + row * step_y
            crop = crops.crop((x, y, x + width, y + height)).resize(shown, Image.Resampling.LANCZOS)
            sheet.paste(crop, (left, 24 + index * (shown[1] + 4)))
    return sheet


def stack() -> Image.Image:
    """Three layers, copied to twelve, beside the losses of the default run."""
    losses = Image.open(HERE / "stacking" / "figures" / "tiny_loss_flops.png").convert("RGB")
    losses = losses.resize((losses.width * 340 // losses.height, 340), Image.Resampling.LANCZOS)
    left = 330
    sheet = Image.new("RGB", (left + losses.width, 340), PAPER)
    sheet.paste(losses, (left, 0))
    draw = ImageDraw.Draw(sheet)
    bottom = 300
    for x, layers, colors, name in ((20, 3, BASE, "train 3 layers"), (190, 12, GROWN, "stack to 12, train on")):
        for layer in range(layers):
            top = bottom - (layer + 1) * 23
            draw.rounded_rectangle((x, top, x + 110, top + 19), 4, fill=colors[layer % 3])
        draw.text((x + 55, bottom + 18), name, INK, font(14), anchor="mm")
    draw.line((142, bottom - 35, 176, bottom - 35), DIM, 3)
    draw.polygon([(176, bottom - 42), (186, bottom - 35), (176, bottom - 28)], fill=DIM)
    draw.text((161, bottom - 54), "×4", DIM, font(15), anchor="mm")
    return sheet


def gallery(entries: Sequence[tuple[str, str, str, str]] = GALLERY) -> str:
    """docs/gallery.md."""
    parts = [HEAD]
    for paper, picture, caption, command in entries:
        parts.append(f"\n## {paper}\n\n{caption}\n\n![{paper}](../experiments/{picture})\n\n```\n{command}\n```\n")
    return "".join(parts)


def main() -> None:
    pictures = {"disco/faces": faces(), "ivideogpt": arm(), "venhancer": street(), "stacking": stack()}
    for folder, picture in pictures.items():
        picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            HERE / folder / "picture.png", optimize=True
        )
    (HERE.parent / "docs" / "gallery.md").write_text(gallery(), encoding="utf-8")


if __name__ == "__main__":
    main()
