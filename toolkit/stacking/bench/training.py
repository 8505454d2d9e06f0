"""``toolkit bench stacking measure=training``: tokens per second of pre-training, against peers on the same tiny Llama.

Contenders with equal parameters, batch, threads and precision (float32), AdamW with clipping:
  ours      the testbed's loop: token files, LanguageModelLoss, train_step, logging and checkpoint loop
  plain     the same loop on transformers' own layers, without our CPU blocks
  bare      forward, backward and fused AdamW of transformers' model with its own loss, nothing else
  trainer   transformers' Trainer
  litgpt    the GPT of a checkout of Lightning-AI/litgpt that the user names (litgpt=PATH), in the steps of its fit()
  nanochat  the GPT of a checkout of karpathy/nanochat (nanochat=PATH) in the steps of its base_train, at the same
            width, depth and heads: another network, with more parameters and its own optimiser
  products  the matrix products of one step's linear layers alone, forward and backward, each at its own size: the limit
            of anything that leaves these to torch
  gemm      how many tokens the matrix products alone would allow at this machine's best speed for large ones:
            ours / it is the share of the peak that is reached
compile=true compiles every network (ours then without the CPU blocks).
"""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from toolkit.bench import BenchOptions, Contender, Makers, endless_loop
from toolkit.errors import UserError
from toolkit.schema import choice, number
from toolkit.zoo.counting import count_parameters

GEMM_SIZE = 1024
PEERS = {"litgpt": "litgpt/model.py", "nanochat": "nanochat/gpt.py"}


@dataclass
class TrainingOptions(BenchOptions):
    """key=value options: the network, the batch, and where peers are."""

    layers: int = number(12, least=1)
    width: int = number(64, least=8)
    mlp: int = number(176, least=1)
    heads: int = number(2, least=1)
    vocab_size: int = number(1024, least=2)
    context: int = number(64, least=2)
    batch_size: int = number(16, least=1)
    num_steps: int = number(10, least=1)
    compile: str = choice("false", "false", "true")
    litgpt: str | None = None
    nanochat: str | None = None

    def check(self) -> None:
        """Peers are checkouts."""
        for name, file in PEERS.items():
            path = getattr(self, name)
            if path and not (Path(path) / file).exists():
                raise UserError(f"{name}={path}: no checkout of {name} there ({file} is missing)")


def contenders(options: TrainingOptions) -> Makers:
    """Name -> function that builds it."""
    makers: dict[str, Callable[[], Contender]] = {
        "ours": lambda: _ours(options, cpu_blocks=True),
        "plain": lambda: _ours(options, cpu_blocks=False),
        "bare": lambda: _bare(options),
        "trainer": lambda: _trainer(options),
        "products": lambda: _products(options),
        "gemm": lambda: _gemm(options),
    }
    if options.litgpt:
        makers["litgpt"] = lambda: _litgpt(options)
    if options.nanochat:
        makers["nanochat"] = lambda: _nanochat(options)
    return makers


def _contender(options: TrainingOptions, parameters: int, train: Callable[[int], None]) -> Contender:
    """``train(n)`` does n optimiser steps."""

    def train_tokens() -> float:
        train(options.num_steps)
        return float(options.num_steps * options.batch_size * options.context)

    return Contender({"train": train_tokens}, parameters)


def _config(options: TrainingOptions) -> Any:
    from toolkit.stacking.config import GrowLLM, Network, Optim

    network = Network(
        num_hidden_layers=options.layers,
        hidden_size=options.width,
        intermediate_size=options.mlp,
        num_attention_heads=options.heads,
        context=options.context,
    )
    optim = Optim(batch_size=options.batch_size)
    return GrowLLM(network=network, optim=optim, checkpoint_every_steps=10**9, compile=options.compile == "true")


def _network(options: TrainingOptions) -> Any:
    from toolkit.stacking.pretrain.networks import Fresh, build, llama_config

    config = llama_config(_config(options).network, options.vocab_size)
    return build(config, Fresh(config, 0)).to(options.device)


def _tokens(options: TrainingOptions) -> Any:
    """Random ids, enough for any number of rounds (the order begins again)."""
    import numpy as np

    size = 64 * options.batch_size * options.context + 1
    return np.random.default_rng(0).integers(0, options.vocab_size, size, dtype=np.uint16)


def _ours(options: TrainingOptions, cpu_blocks: bool) -> Contender:
    """The testbed's own pieces and the Loop with its logging."""
    from accelerate import Accelerator

    from toolkit.stacking.pretrain.language_loss import LanguageModelLoss
    from toolkit.stacking.pretrain.states import NetworkState, OptimizerState
    from toolkit.stacking.pretrain.tokens import Sequences
    from toolkit.stacking.pretrain.train import learning_rate_at, make_optimizer, train_step

    config, network = _config(options), _network(options)
    if not cpu_blocks:
        network.register_forward_hook(lambda module, inputs, output: output)  # somebody watches
    accelerator, module = Accelerator(cpu=options.device == "cpu"), LanguageModelLoss(network)
    if config.compile:
        module.compile()
    optimizer = make_optimizer(network, config.optim)
    state = {"model": NetworkState(network), "optimizer": OptimizerState(optimizer, network)}
    loop, steps = endless_loop(config, "base", state)
    sequences = Sequences(_tokens(options), options.context, 0)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            step = next(steps)
            batch = sequences.batch(step * options.batch_size, options.batch_size)
            lr = 1e-3 * learning_rate_at(step, config.optim, 10**9, 1)
            loss, norm = train_step(module, network, optimizer, batch, lr, config, accelerator)
            loop.log(loss=loss, grad_norm=norm, lr=lr)

    return _contender(options, count_parameters(network), train)


def _batches(options: TrainingOptions) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    ids = torch.from_numpy(_tokens(options).astype("int64"))
    size, place = options.batch_size * options.context, 0

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal place
        start, place = place, (place + size) % (len(ids) - size - 1)
        parts = ids[start : start + size], ids[start + 1 : start + size + 1]
        one, other = (part.view(options.batch_size, -1).to(options.device) for part in parts)
        return one, other

    return batch


def _bare(options: TrainingOptions) -> Contender:
    network, batch = _network(options), _batches(options)
    if options.compile == "true":
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            ids, _ = batch()
            network(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return _contender(options, count_parameters(network), train)


def _trainer(options: TrainingOptions) -> Contender:
    """transformers' Trainer; a round is one call of ``train`` of that many steps more, set-up left out by warm-up."""
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ids = torch.from_numpy(_tokens(options).astype("int64"))

    class Blocks(Dataset):
        def __len__(self) -> int:
            return 10**7

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            start = index * options.context % (len(ids) - options.context)
            block = ids[start : start + options.context]
            return {"input_ids": block, "labels": block}

    network, folder = _network(options), tempfile.mkdtemp(prefix="bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=options.batch_size, max_steps=10**9,
        learning_rate=1e-3, adam_beta2=0.95, weight_decay=0.1, max_grad_norm=1.0, logging_steps=50, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=options.device == "cpu", torch_compile=options.compile == "true",
        lr_scheduler_type="constant_with_warmup", warmup_steps=100, optim="adamw_torch_fused",
    )  # fmt: skip
    return _contender(
        options, count_parameters(network), _paused(Trainer, TrainerCallback, network, arguments, Blocks())
    )


def _paused(trainer: Any, callback: Any, network: Any, arguments: Any, dataset: Any) -> Callable[[int], None]:
    """The Trainer in a thread of its own that stops after every round and goes on with the next."""
    import threading

    left, wake, done = 0, threading.Semaphore(0), threading.Semaphore(0)
    failed: list[BaseException] = []

    class Gate(callback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if left == 0:
                done.release()
                wake.acquire()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal left
            left -= 1

    def work() -> None:
        try:
            torch.set_num_threads(threads)
            trainer(model=network, args=arguments, train_dataset=dataset, callbacks=[Gate()]).train()
        except BaseException as error:  # raised where it is waited for
            failed.append(error)
            done.release()

    def wait() -> None:
        done.acquire()
        if failed:
            raise failed[0]

    threads = torch.get_num_threads()
    threading.Thread(target=work, daemon=True).start()
    wait()

    def train(num_steps: int) -> None:
        nonlocal left
        left = num_steps
        wake.release()
        wait()

    return train


def _litgpt(options: TrainingOptions) -> Contender:
    """litgpt's network as a Llama, in the steps of its ``fit``: no accumulation, so nothing is left out of a step."""
    sys.path.insert(0, str(options.litgpt))
    model, utils, config = (importlib.import_module(f"litgpt.{name}") for name in ("model", "utils", "config"))
    network = model.GPT(
        config.Config(
            block_size=options.context, vocab_size=options.vocab_size, padded_vocab_size=options.vocab_size,
            n_layer=options.layers, n_head=options.heads, n_embd=options.width, rotary_percentage=1.0,
            parallel_residual=False, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
            intermediate_size=options.mlp, n_query_groups=options.heads,
        )
    ).to(options.device)  # fmt: skip
    network.max_seq_length = options.context
    trained = torch.compile(network) if options.compile == "true" else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch, running = _batches(options), torch.zeros(())

    def train(num_steps: int) -> None:
        nonlocal running
        for _ in range(num_steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            ids, targets = batch()
            loss = utils.chunked_cross_entropy(trained(ids), targets)
            loss.backward()
            running = running + loss.detach()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return _contender(options, count_parameters(network), train)


def _nanochat(options: TrainingOptions) -> Contender:
    """nanochat's network with its own optimiser."""
    sys.path.insert(0, str(options.nanochat))
    gpt = importlib.import_module("nanochat.gpt")
    shape = {"n_layer": options.layers, "n_head": options.heads, "n_kv_head": options.heads, "n_embd": options.width}
    network = gpt.GPT(
        gpt.GPTConfig(sequence_len=options.context, vocab_size=options.vocab_size, window_pattern="L", **shape)
    ).to(options.device)
    network.init_weights()
    trained = torch.compile(network, dynamic=False) if options.compile == "true" else network
    optimizer, batch = network.setup_optimizer(), _batches(options)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            ids, targets = batch()
            trained(ids, targets).backward()
            optimizer.step()
            network.zero_grad(set_to_none=True)

    return _contender(options, count_parameters(network), train)


def _products(options: TrainingOptions) -> Contender:
    """Of every linear layer on random rows: its output, and the gradients of its input and of its weights."""
    network, rows = _network(options), options.batch_size * options.context
    weights = [layer.weight.detach() for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    inputs, grads = (
        {size: torch.randn(rows, size, device=options.device) for size in {weight.shape[side] for weight in weights}}
        for side in (1, 0)
    )

    @torch.no_grad()
    def multiply(num_steps: int) -> None:
        for weight in weights * num_steps:
            x, grad = inputs[weight.shape[1]], grads[weight.shape[0]]
            F.linear(x, weight), grad @ weight, grad.T @ x

    return _contender(options, count_parameters(network), multiply)


def _gemm(options: TrainingOptions) -> Contender:
    """Large square products; counts the tokens whose matrix products are as many FLOPs."""
    from toolkit.stacking.pretrain.networks import llama_config, training_cost

    cost = training_cost(llama_config(_config(options).network, options.vocab_size), options.context)
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=options.device) for _ in range(2))

    def multiply() -> float:
        for _ in range(10):
            F.linear(a, b)
        return 10 * 2 * GEMM_SIZE**3 / cost.flops_matmul

    return Contender({"train": multiply}, cost.parameters)
