"""One run of a claim's sweep: what is typed, what is launched, where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.claims.claims import RunSpec
from toolkit.renamed import first_spelling
from toolkit.show.browse import RunInfo, read_run


@dataclass(frozen=True)
class Job:
    """One run of one seed: where it goes and its overrides, ``typed`` with ``@RUN`` and as launched."""

    spec: RunSpec
    seed: int
    dir: Path
    typed: list[str]
    overrides: list[str]
    minutes: float | None

    def info(self) -> RunInfo:
        return read_run(self.dir)

    def state(self) -> str:
        """missing, done, partial, or ``done with other overrides`` (the runner will refuse or extend it)."""
        info = self.info()
        if info.problem:
            return "damaged" if (self.dir / "run.json").exists() else "missing"
        if info.status != "done":
            return f"partial ({info.status})"
        recorded = [word for word in info.record.get("overrides") or [] if not word.startswith("hydra.")]
        same = first_spelling(self.spec.command, recorded) == first_spelling(self.spec.command, self.overrides)
        return "done" if same else "done with other overrides"
