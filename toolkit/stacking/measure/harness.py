"""lm-evaluation-harness as the engine (extra ``eval``), by three routes that give the same numbers.

memory: a transformers model that is loaded already. folder: the harness loads the checkpoint itself, as its command
line does. own: the harness asks ``scoring.Scorer`` for log-likelihoods, as it would any model without a transformers
class.
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets.utils import disable_progress_bars, enable_progress_bars
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from toolkit.errors import UserError, brief
from toolkit.stacking.checkpoints.load import place
from toolkit.stacking.measure.scoring import Scorer
from toolkit.stacking.measure.tasks import write_tasks

FEWSHOT_SEED = 1234  # the harness's default


@dataclass(frozen=True)
class Score:
    """Metrics of one task over ``num_rows`` rows. Accuracies in [0, 1]."""

    metrics: dict[str, float]
    num_rows: int

    def standard_error(self, metric: str) -> float | None:
        """Of an accuracy (binomial); None for another metric."""
        if not metric.startswith("acc") or self.num_rows < 2:
            return None
        accuracy = self.metrics[metric]
        return math.sqrt(accuracy * (1 - accuracy) / (self.num_rows - 1))


class ScoredLM(LM):
    """The route ``own``."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats, greedy) of every (context, continuation)."""
        return self.scorer.loglikelihoods([self.scorer.pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of every text."""
        return self.scorer.rolling([request.args[0] for request in requests])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """None of our tasks generates."""
        raise UserError("evaluation.route=own: scores text; a task that generates needs route=memory or route=folder")


def in_memory(scorer: Scorer) -> LM:
    """The route ``memory``: the harness's own code on a model that is there."""
    return HFLM(
        pretrained=scorer.model,
        tokenizer=scorer.tokenizer,
        batch_size=scorer.batch_size,
        max_length=scorer.context,
        softmax_dtype="float32",
    )


def from_source(source: str, scorer: Scorer) -> LM:
    """The route ``folder``: a checkpoint folder or GGUF file, loaded by the harness as ``scorer`` was set up."""
    where, options = place(source)
    return HFLM(
        pretrained=str(where),
        dtype=scorer.model.dtype,
        device=str(scorer.model.device),
        batch_size=scorer.batch_size,
        max_length=scorer.context,
        softmax_dtype="float32",
        **options,
    )


@contextmanager
def loaded(names: Sequence[str], data: Path | None = None, num_fewshot: int = 0) -> Iterator[Any]:
    """The harness's task objects for ``names`` (see ``tasks.expand``), their data read: from exports in ``data``, else
    from the hub. They can be used inside of the ``with`` block.

    Raises UserError where an export does not fit, or the hub cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-tasks-") as folder, quiet():
        here = Path(folder)
        written = write_tasks(names, data, here, Path(lm_eval.tasks.__file__).parent, num_fewshot)
        try:
            tasks = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False).load(written)
        except OSError as error:  # also what datasets and the hub raise where there is no connection
            raise UserError(
                f"evaluation.tasks: a data set is not to be had from the hub ({brief(error, 200)}); "
                f"give local exports with evaluation.task_data=FOLDER"
            ) from None
        for task in tasks["tasks"].values():
            task.set_config("num_fewshot", num_fewshot)
            task.set_fewshot_seed(FEWSHOT_SEED)
        yield tasks


def run_tasks(model: LM, tasks: Any, limit: int | None = None) -> dict[str, Score]:
    """Scores of tasks that are ``loaded``, in their order. limit: rows of each."""
    with quiet():
        answer = evaluate(model, tasks, limit=limit, bootstrap_iters=0, log_samples=False)
    assert answer is not None
    return {name: _score(answer, name) for name in tasks["tasks"]}


def _score(answer: Any, name: str) -> Score:
    """The harness names metrics ``acc,none``: the metric and the filter, of which we use none."""
    found = {key.split(",")[0]: value for key, value in answer["results"][name].items() if key.endswith(",none")}
    metrics = {key: float(value) for key, value in found.items() if not key.endswith("_stderr")}
    return Score(metrics, int(answer["n-samples"][name]["effective"]))


@contextmanager
def quiet() -> Iterator[None]:
    """The harness comments on its defaults at length; errors still come through. Its bars need a terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
            yield
    finally:
        enable_progress_bars()
        logger.setLevel(level)
