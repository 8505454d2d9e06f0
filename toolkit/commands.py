"""The job commands: one line each. Imports nothing, so that ``--help`` costs nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A job command: ``room`` is the package that holds ``config.py`` (no torch), ``job.py`` and ``bench.py``."""

    name: str
    room: str
    help: str
    bench: str  # its benchmark: ``toolkit bench NAME``

    @property
    def primary(self) -> str:
        """Name of its primary config in conf/."""
        return self.name.replace("-", "_")


COMMANDS = {
    command.name: command
    for command in [
        Command("train-disco", "toolkit.disco", "Train DisCo-Diff and its baseline, sample, measure.", "disco"),
        Command("sample-icg", "toolkit.icg", "Sample with training-free guidance (ICG, TSG), and compare.", "icg"),
        Command("grow-llm", "toolkit.stacking", "Grow a language model, or pre-train, grow and compare.", "grow"),
        Command(
            "train-ivideogpt",
            "toolkit.ivideogpt",
            "Train an interactive world model (iVideoGPT), roll it out, plan in it, measure.",
            "ivideogpt",
        ),
        Command(
            "enhance-video",
            "toolkit.venhancer",
            "Enlarge a video in space and time: VEnhancer, or no network.",
            "enhance",
        ),
    ]
}
