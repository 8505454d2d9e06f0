"""What a verdict depends on beside its recipe in claims.yaml.

That is the resolved config of each run, the bytes of the data and weights that it reads, and the versions of packages.

``identity.json`` beside results.json keeps them, a line a run. What differs today makes the verdicts on the run stale.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.claims.claims import Claims, RunSpec
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.catalogue import CATALOGUE
from toolkit.data.fetching import pins
from toolkit.errors import UserError
from toolkit.paths import PACKAGE
from toolkit.plain_files import read_object
from toolkit.renamed import config_now
from toolkit.runs.files import write_atomic
from toolkit.runs.machine import package_versions
from toolkit.runs.record import differing_keys
from toolkit.schema import Job
from toolkit.zoo.catalogue import SHIPPED, local

VERSIONS = ("torch", "diffusers", "transformers", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Identity:
    """Of one run: its first seed stands for all, for seeds differ in ``each`` alone."""

    run: RunSpec
    job: Job
    reads: dict[str, str]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        config = dataclasses.asdict(self.job)
        words = {"recipe": self.run.recipe, "each": self.run.each}
        return {**words, "config": config, "reads": self.reads, "versions": self.versions, "not_recorded": []}

    def changes(self, then: dict[str, Any]) -> list[str]:
        """What is not as it was ``then``, in words. A config key that came since, with its default, is as it was."""
        found = [f"recipe was {then['recipe']}, is {self.run.recipe}"] if then["recipe"] != self.run.recipe else []
        found += ["the words of its seeds changed"] if then["each"] != self.run.each else []
        before = config_now(self.run.command, then["config"])
        found += [f"{key} was {old}, is {new}" for key, _, old, new in differing_keys(before, self.job)]
        for name in sorted({*then["reads"], *self.reads}):
            if then["reads"].get(name) != self.reads.get(name):
                found.append(f"{name} has other bytes" if name in then["reads"] else f"{name} was not recorded")
        for name, old in then["versions"].items():
            new = self.versions.get(name, "absent")
            if old.partition("+")[0] != new.partition("+")[0]:
                found.append(f"{name} was {old}, is {new}")
        return found


def identity(run: RunSpec) -> Identity:
    """Of ``run`` as it would be made now. Raises UserError where its words are no longer understood."""
    versions = package_versions()
    job = _compose(run.command, tuple(run.words(run.seeds[0])))
    return Identity(run, job, reads(run.command, job), {name: versions[name] for name in VERSIONS if name in versions})


@functools.cache
def _compose(command: str, words: tuple[str, ...]) -> Job:
    return compose(COMMANDS[command], list(words))


def reads(command: str, job: Job) -> dict[str, str]:
    """sha256 of the files that a run of ``job`` reads and no other run made: pinned data, weights in the package.

    Data that comes inside a package or is generated has the package's version, or the code, for its identity.
    """
    found: dict[str, str] = {}
    for name in (getattr(getattr(job, "data", None), "name", None), getattr(job, "input", None)):
        entry = CATALOGUE.get(str(name))
        if entry and entry.download:
            found |= {f"{entry.download}/{file}": pin for file, pin in pins(entry.download).items()}
    for path in _weights(command, job):
        found[str(path.relative_to(PACKAGE))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _weights(command: str, job: Job) -> list[Path]:
    """The files in the package that a run of ``job`` reads: of models that ship, whichever key names them."""
    asked = [getattr(job, key, None) for key in ("model", "init")]
    asked.append(getattr(getattr(job, "sampling", None), "null_model", None))
    folders = [local(name) for name in asked if name in SHIPPED]
    unread = None
    if command == "enhance-video" and getattr(job, "model", None) == "small" and getattr(job, "stage", None) != "train":
        folders.append(local("video_small"))
        unread = None if getattr(job, "keys", None) == "upscaler" else folders[-1] / "upscaler"  # a network of its own
    paths = {path for folder in folders for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")}
    return sorted(path for path in paths if path.parent != unread)


def find_changes(spec: Claims, then: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    """``{run: what is no longer as it was}`` for the runs ``names``; a run whose ``@RUN`` changed changed with it."""
    found: dict[str, str] = {}
    for name, run in spec.runs.items():
        if name not in names or name not in then:
            continue
        said = identity(run).changes(then[name])
        said += [f"made from {other}: {found[other]}" for other in run.references() if other in found]
        if said:
            found[name] = "; ".join(dict.fromkeys(said))
    return found


def read_identities(path: Path) -> dict[str, Any]:
    """identity.json, empty where there is none. Raises UserError when it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_object(path)
    except ValueError:
        raise UserError(f"{path}: damaged; take it from the history, or move it away") from None


def write_identities(path: Path, found: dict[str, Any]) -> None:
    """One line a run: a change of one shows as one line."""
    lines = [f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
