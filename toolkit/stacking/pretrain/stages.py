"""The testbed (section 4): corpus -> base -> growth -> training on, beside its controls, one stage each.

The controls: the target trained from scratch, at every learning rate of a sweep, and the base simply trained on. All
end at the same compute, the base's included in whatever grew from it. A stage reads what an earlier one made back from
the run folder, so that each can resume.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.runs import checkpoint as checkpoints
from toolkit.runs import progress
from toolkit.runs.device import accelerator_of
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.stacking.checkpoints.open import Checkpoint, find_network, open_checkpoint
from toolkit.stacking.config import GrowLLM, scratch_stage
from toolkit.stacking.grow_folder import grow_checkpoint
from toolkit.stacking.measure.compare import other_arms
from toolkit.stacking.measure.curves import Arm, Spent
from toolkit.stacking.operators.families import check_trainable
from toolkit.stacking.operators.grow import Grown
from toolkit.stacking.operators.learn import GrowthMap
from toolkit.stacking.operators.masks import WIDTH_PHASES, GrowthMasks
from toolkit.stacking.pretrain.corpus import token_store
from toolkit.stacking.pretrain.networks import (
    ARCHITECTURE,
    Fresh,
    build,
    check_context,
    check_vocabulary,
    llama_config,
    planned,
    tokens_left,
    training_cost,
    with_map,
)
from toolkit.stacking.pretrain.saving import history, recorded_history, save_trained
from toolkit.stacking.pretrain.states import check_moments, tiled_moments
from toolkit.stacking.pretrain.tokens import Sequences, TokenStore, held_out
from toolkit.stacking.pretrain.train import Task, check_batches, train
from toolkit.stacking.stage_grow import identity, trained_map, written_by

PROBE_TOKENS = 256  # of held-out text, on which growth is judged to keep the function or not


class Testbed:
    """The stages of one run of ``stage=all``, ``corpus`` or ``pretrain``."""

    def __init__(self, config: GrowLLM, run: Run) -> None:
        check_batches(config.optim, config.precision, config.network.context)
        self.config, self.run = config, run
        self.accelerator = accelerator_of(run)

    def stages(self) -> dict[str, Callable[[], None]]:
        """What each stage does."""
        rates = {scratch_stage(lr, self.config.optim): lr for lr in self.config.scratch_lrs()}
        return {
            "corpus": self.make_corpus,
            "base": self.train_base,
            "grow": self.grow_base,
            "grown": self.train_grown,
            **{name: self._scratch_trainer(name, lr) for name, lr in rates.items()},
            "continued": self.train_continued,
            "pretrain": self.train_one,
        }

    # -- what they share ---------------------------------------------------------------------------------------------

    @cached_property
    def store(self) -> TokenStore:
        """The token files. Raises UserError where they are not those this run began with.

        A ``model`` that cannot be trained is refused before they are made.
        """
        if "tokens" not in self.run.record and self.config.stage != "corpus":
            _ = self._opened
        store = token_store(self.config)
        begun_with = self.run.record.setdefault("tokens", store.fingerprint)
        if begun_with not in (store.fingerprint, store.former):
            raise UserError(f"{self.run.dir}: the corpus has changed since this run began; use another hydra.run.dir")
        return store

    @cached_property
    def source(self) -> Checkpoint | None:
        """The checkpoint of ``model``, None where the base is trained here. Raises UserError where it does not fit."""
        found = self._opened
        if found is not None:
            check_vocabulary(found.config, self.store.vocab_size, str(self.config.model))
        return found

    @cached_property
    def _opened(self) -> Checkpoint | None:
        """The checkpoint of ``model``, held against all but the text. Raises UserError."""
        if self.config.model is None:
            return None
        found = open_checkpoint(find_network(self.config.model, self.config.part))
        check_trainable(found.config, f"model={self.config.model}")
        check_context(found.config, self.config.network.context, self.config.model)
        recorded_history(found)
        return found

    def base_config(self) -> Any:
        """The transformers config of the base."""
        if self.source is not None:
            return self.source.config
        return llama_config(self.config.network, self.store.vocab_size, self.store.tokenizer())

    def base(self) -> Checkpoint:
        """The trained base."""
        return self.source or open_checkpoint(self._folder("base"))

    def plan(self) -> Grown:
        """How the base grows. Raises UserError where the operator does not fit it."""
        return planned(self.base_config(), self.config.growth(), self.config.seed)

    def cost(self, config: Any) -> Any:
        """What training a network of ``config`` costs here."""
        return training_cost(config, self.config.network.context)

    def sequences_left(self, config: Any, spent: Spent, tokens: float | None) -> int:
        """How many sequences a network trains on: ``tokens``, or what is left of scratch's compute.

        Raises UserError where nothing is left.
        """
        if tokens is None:
            tokens = tokens_left(self.config, self.cost(self.plan().config), self.cost(config), spent)
        return math.ceil(tokens / self._context)

    # -- stages --------------------------------------------------------------------------------------------------------

    def make_corpus(self) -> None:
        """Fetch, tokenise, pack; and see that growth, masks and budget fit before anything trains."""
        store = self.store
        progress.say(
            f"corpus: {len(store.train):,} training and {len(store.valid):,} held-out tokens in {store.folder}"
        )
        Sequences(store.train, self.config.network.context, self.config.seed)
        held_out(store.valid, self.config.network.context, self.config.compare.eval_tokens)
        if self.config.stage == "all":
            self._check_fit()
        if self.config.stage == "pretrain":
            self.base_config()
        if rank() == 0:
            name = "headline" if self.config.stage == "corpus" else "corpus"
            store.table().save(self.run.path("tables", f"{name}.json"))

    def _check_fit(self) -> None:
        """Growth, masks and budget fit together; what will be compared with is there."""
        other_arms(self.config)
        base, target = self.cost(self.base_config()), self.plan().config
        spent = history(self.source) if self.source else Spent().after(base, self._base_sequences(), self._context)
        begun = with_map(self.config, spent, self.cost(target))
        num_sequences = self.sequences_left(target, begun, self.config.budget.grown_tokens)
        if self.source is not None and self.config.optim.after_growth == "tile":
            check_moments(self._base_moments(), str(self.config.model))
        if self.config.operator == "random" and "grown" in self.config.arms:
            phases = len(WIDTH_PHASES) if self.config.direction == "width" else 1
            num_steps = math.ceil(num_sequences / self.config.optim.batch_size)
            if phases * self.config.optim.mask_steps >= num_steps:
                raise UserError(
                    f"optim.mask_steps={self.config.optim.mask_steps}: the masks must be open before training ends; "
                    f"at most {(num_steps - 1) // phases} here"
                )
            if self.config.compile:
                raise UserError("compile=true: operator=random changes its masks at every step; use compile=false")

    def train_base(self) -> None:
        """The shallow or narrow base, on d tokens."""
        config = self.base_config()
        network = build(config, Fresh(config, derive(self.config.seed, "init", "base")))
        self._train(network, "base", self._base_lr, self._base_sequences(), Spent())

    def grow_base(self) -> None:
        """The grown network before it trains, as a checkpoint of its own in ``model/start``."""
        out, base = self._folder("start"), self.base()
        if rank() == 0 and written_by(self.run, out) is None:
            shutil.rmtree(out, ignore_errors=True)
            report = grow_checkpoint(
                base,
                out,
                self.config.growth(),
                seed=self.config.seed,
                text=self.store.tokenizer().decode(self.store.valid[:PROBE_TOKENS]),
                growth_map=self._growth_map(base),
                run_id=identity(self.run),
            )
            if "function" in report:
                self.run.add_metrics("grow", {k: v for k, v in report["function"].items() if isinstance(v, float)})
            self.run.add_metrics("grow", {"connection_rate": report["connection_rate"]})
        barrier()

    def train_grown(self) -> None:
        """The grown network, until it has cost what scratch costs."""
        start = open_checkpoint(self._folder("start"))
        network, spent, plan = build(start.config, start.tensors), self._start_history(start.config), self.plan()
        masks = None
        if self.config.operator == "random":
            masks = GrowthMasks(network, plan.plan, plan.old, plan.new, self.config.optim.mask_steps)
        moments = None
        if self.config.optim.after_growth == "tile":
            base = check_moments(self._base_moments(), str(self.config.model or "the base"))
            moments = tiled_moments(base, plan.plan, ARCHITECTURE, ARCHITECTURE.shapes(start.config))
        left = self.sequences_left(start.config, spent, self.config.budget.grown_tokens)
        self._train(network, "grown", self.config.optim.lr, left, spent, start, masks=masks, moments=moments)

    def train_continued(self) -> None:
        """The control that only trains the base on: same network, optimizer state and rate."""
        base = self.base()
        spent, moments = history(base), self._base_moments()
        first = spent.sequences // self.config.optim.batch_size if moments else 0
        left = self.sequences_left(base.config, spent, self.config.budget.continued_tokens)
        network = build(base.config, base.tensors)
        self._train(network, "continued", self._base_lr, left, spent, base, moments=moments, first_step=first)

    def train_one(self) -> None:
        """stage=pretrain: ``network`` from scratch, or the checkpoint ``model`` trained on."""
        if self.source is not None:
            network, spent = build(self.source.config, self.source.tensors), history(self.source)
        else:
            config = self.base_config()
            network, spent = build(config, Fresh(config, derive(self.config.seed, "init", "pretrain"))), Spent()
        num_sequences = math.ceil(self.config.budget.tokens / self._context)
        self._train(network, "pretrain", self.config.optim.lr, num_sequences, spent, self.source)

    def _scratch_trainer(self, stage: str, lr: float) -> Callable[[], None]:
        def train_scratch() -> None:
            config = self.plan().config
            network = build(config, Fresh(config, derive(self.config.seed, "init", "scratch")))
            num_sequences = math.ceil(self.config.budget.tokens / self._context)
            self._train(network, stage, lr, num_sequences, Spent())

        return train_scratch

    # -- steps of the stages -------------------------------------------------------------------------------------------

    @property
    def _context(self) -> int:
        return self.config.network.context

    @property
    def _base_lr(self) -> float:
        return self.config.optim.base_lr or self.config.optim.lr

    def _base_sequences(self) -> int:
        return math.ceil(self.config.budget.growth_tokens / self._context)

    def _folder(self, name: str) -> Path:
        return self.run.dir / "model" / name

    def _train(
        self,
        network: Any,
        stage: str,
        lr: float,
        num_sequences: int,
        spent: Spent,
        began_as: Checkpoint | None = None,
        **more: Any,
    ) -> None:
        task = Task(stage, network, self.cost(network.config), lr, num_sequences, spent, **more)
        trained = train(task, self.run, self.config, self.store, self.accelerator)
        if task.masks:
            task.masks.remove()
        save_trained(trained, self._folder(stage), self.store, began_as)
        arm = Arm(stage.split("-")[0], self._settings(stage, lr, network.config), trained.curve.points)
        if rank() == 0:
            arm.save(self.run.path("curves", f"{stage}.json"))
        final = {
            "loss": arm.final_loss,
            "last_loss": arm.points[-1]["valid_loss"],
            "tokens": trained.spent.tokens,
            "flops": trained.spent.flops,
        }
        self.run.add_metrics(stage, final)
        self.run.record.setdefault("parameters", {})[stage] = task.cost.parameters
        barrier()

    def _settings(self, stage: str, lr: float, config: Any) -> dict[str, Any]:
        growth = self.config.growth()
        grown = {"operator": growth.operator, "direction": growth.direction, "noise": growth.noise}
        return {
            "seed": self.config.seed,
            "lr": lr,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "base_layers": self.base_config().num_hidden_layers,
            "growth_tokens": self.config.budget.growth_tokens,
            "factor": self._factor(),
            **(grown if stage == "grown" else {}),
        }

    def _factor(self) -> float:
        """The paper's g: parameters without embedding and head, target's / base's; 1 where nothing grows."""
        if self.config.stage != "all":
            return 1.0
        base, target = self.cost(self.base_config()), self.cost(self.plan().config)
        return target.non_embedding / base.non_embedding

    def _base_moments(self) -> dict[str, Any] | None:
        """The base's optimizer state from the last checkpoint of the run that trained it, None where there is none."""
        folder = self.run.dir / "checkpoints" / "base"
        if self.config.model is not None:
            folder = Path(self.config.model) / "checkpoints" / (self.config.part or "base")
        found = checkpoints.load(folder)
        return found[1]["state.optimizer"] if found else None

    def _start_history(self, target: Any) -> Spent:
        """The base's, and that of G_learn's map."""
        return with_map(self.config, history(self.base()), self.cost(target))

    def _growth_map(self, base: Checkpoint) -> GrowthMap | None:
        """G_learn's map, trained on the sequences after the base's; None for other operators."""
        first = history(base).sequences
        return trained_map(self.config, base, self.store, self._context, self.accelerator.device, first)
