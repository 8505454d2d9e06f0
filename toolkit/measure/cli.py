"""The command line of ``toolkit measure``. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Published metrics of samples: FID, Inception score, precision, FVD.", no_args_is_help=True)


@app.command("images")
def measure_images(
    samples: Annotated[Path, typer.Argument(help="Folder, .zip or ADM's .npz of samples.")],
    reference: Annotated[Path, typer.Argument(help="Images, ADM's reference batch, or EDM's .npz of statistics.")],
    inception: Annotated[Path, typer.Option(help="pt_inception-2015-12-05-6726825d.pth; see docs/measure.md.")],
    num: Annotated[int | None, typer.Option(help="Only the first N samples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per pass.")] = 64,
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this .json.")] = None,
) -> None:
    """FID, sFID, Inception score, precision and recall, as EDM's and ADM's scripts compute them."""
    from toolkit.measure.job import Plan, measure_and_write
    from toolkit.show.terminal import show

    show(measure_and_write(Plan(samples, reference, inception, num, batch_size, device), out))


@app.command("videos")
def measure_videos(
    generated: Annotated[
        Path, typer.Argument(help="Folder of videos, or .npz of uint8 (n, frames, height, width, 3).")
    ],
    reference: Annotated[Path, typer.Argument(help="Real videos, in the same form.")],
    i3d: Annotated[Path | None, typer.Option(help="StyleGAN-V's i3d_torchscript.pt, for FVD.")] = None,
    paired: Annotated[bool, typer.Option("--paired", help="PSNR and SSIM: clip i belongs to real clip i.")] = False,
    lpips: Annotated[
        Path | None, typer.Option(help="Folder with VGG16's features and LPIPS' heads. Needs --paired.")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Only the first N frames of each clip.")] = None,
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this .json.")] = None,
) -> None:
    """FVD, PSNR, SSIM and LPIPS of clips, as iVideoGPT's evaluation computes them."""
    from toolkit.measure.videos import VideoPlan
    from toolkit.measure.videos import measure_videos as measure
    from toolkit.show.terminal import show

    show(measure(VideoPlan(generated, reference, i3d, paired, lpips, num_frames, device), out))


@app.command("statistics")
def measure_statistics(
    images: Annotated[Path, typer.Argument(help="Folder, .zip or .npz of images.")],
    out: Annotated[Path, typer.Argument(help="The .npz to write.")],
    inception: Annotated[Path, typer.Option(help="pt_inception-2015-12-05-6726825d.pth; see docs/measure.md.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images per pass.")] = 64,
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "cpu",
) -> None:
    """Compute the statistics of a reference set, to compare samples with later."""
    from toolkit.measure.job import make_statistics

    typer.echo(make_statistics(images, inception, out, device, batch_size))
