"""Held-out losses do not depend on how many processes measure them."""

import multiprocessing
import os
import socket
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.stacking.models import make_model, token_ids
from toolkit.runs import distributed
from toolkit.stacking.config import Compare, GrowLLM, Network, Optim
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss
from toolkit.stacking.pretrain.train import measurer


def measured(windows):
    """The loss on this many windows of 8 tokens."""
    store = SimpleNamespace(valid=token_ids(1, windows * 8 + 1)[0].numpy())
    config = GrowLLM(network=Network(context=8), compare=Compare(eval_tokens=10**6), optim=Optim(batch_size=4))
    module = LanguageModelLoss(make_model())
    return measurer(module, store, config, Accelerator(cpu=True))()


def one_of_two(rank, port, results):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.start()
    results.put([measured(windows) for windows in (1, 7, 8, 9)])
    distributed.stop()


def test_two_processes_measure_what_one_does():
    """Windows that do not divide among the processes count too, and so does a single one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=one_of_two, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    both = [results.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(60)
    alone = [measured(windows) for windows in (1, 7, 8, 9)]
    assert both[0] == both[1] == pytest.approx(alone, rel=1e-6)
    assert len(set(alone)) == 4
