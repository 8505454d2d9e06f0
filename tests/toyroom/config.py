"""The config of ``toolkit train-toy``."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.errors import UserError
from toolkit.schema import Job, choice, number


@dataclass
class Optim:
    num_steps: int = number(30, least=1, extends="train")
    lr: float = number(0.01, above=0)
    batch_size: int = number(16, least=1)
    drift: list[float] = number([0.9, 0.99], least=0, below=1)


@dataclass
class Network:
    width: int = number(8, least=1)


@dataclass
class TrainToy(Job):
    command: str = "train-toy"
    stage: str = choice("all", "all", "train", "measure", computes=False)
    amplitude: float = 1.0
    ballast: int = number(0, least=0)  # floats that make every checkpoint larger, and slower to write
    step_time_s: float = number(0.0, least=0, computes=False)
    data_path: str | None = None
    network: Network = field(default_factory=Network)
    optim: Optim = field(default_factory=Optim)

    def stages(self) -> list[str]:
        return ["train", "measure"] if self.stage == "all" else ["train"]

    def check(self) -> None:
        if self.optim.batch_size > 1000 * self.network.width:
            raise UserError(f"optim.batch_size={self.optim.batch_size}: too large for network.width")


SCHEMAS = {
    (None, "train_toy_schema"): TrainToy,
    ("network", "network_schema"): Network,
}
