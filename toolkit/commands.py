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
        Command(
            "enhance-video",
            "toolkit.venhancer",
            "Enlarge a video in space and time: VEnhancer, or no network.",
            "enhance",
        ),
    ]
}
