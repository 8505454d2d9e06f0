"""Our tokenizer, transformer and world model give the release's answers on the same weights.

The expected tensors were computed with the official code (thuml/iVideoGPT) in float32: 2 clips of 5 frames, 2 of
context, 64x64, action width 4, and greedy roll-outs under the given and under negated actions. Tokens, labels and
greedy tokens are equal. Largest errors measured on a CPU, 1 thread: loss and context's commitment loss 0, dynamics'
commitment loss 3e-8, logits 2e-6; images 2e-3, which is half a float16 step, their storage (values reach 4.7).
"""

from __future__ import annotations

import pytest
import torch

import toolkit.zoo
from tests.device.placement import DEVICE, PRECISION, arithmetic, exact_arithmetic, placed, tolerance
from tests.zoo.golden import golden_expected, write_ivideogpt
from toolkit.zoo.world.release import import_ivideogpt

pytestmark = pytest.mark.processor
T0 = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ivideogpt")
    import_ivideogpt(write_ivideogpt(folder / "official"), folder / "ours")
    return toolkit.zoo.load(folder / "ours").to(DEVICE)


@pytest.fixture(scope="module")
def expected():
    tensors = placed(golden_expected("ivideogpt"))
    return {key: one.long() if one.dtype == torch.int32 else one.float() for key, one in tensors.items()}


def assert_equal_as_stored(ours, official):
    """The nearest float16 may differ by one step where ours lies between two."""
    assert ours.shape == official.shape
    if PRECISION == "fp32":
        torch.testing.assert_close(ours, official, rtol=1e-3, atol=1e-4)
    else:
        assert (ours - official).abs().max() < tolerance(0) * official.abs().max()


@exact_arithmetic
def test_tokens_and_labels(world, expected):
    tokens = world.tokenizer.tokenize(expected["pixel_values"])
    assert torch.equal(tokens, expected["tokens"])
    assert torch.equal(world.tokenizer.layout.labels(tokens), expected["labels"])


def test_decoded_frames(world, expected):
    with arithmetic():
        assert_equal_as_stored(world.tokenizer.detokenize(expected["tokens"]).float(), expected["reconstruction"])
        # the greedy tokens hold context codes inside frames, which the release clamps to the dynamics codes
        greedy = world.tokenizer.detokenize(expected["greedy_tokens"]).float()
    assert_equal_as_stored(greedy, expected["greedy_frames"])


@exact_arithmetic
@torch.no_grad()
def test_training_forward_of_the_tokenizer(world, expected):
    frames = expected["pixel_values"]
    found = world.tokenizer(frames[:, :T0], frames[:, T0:])
    assert_equal_as_stored(found.sample.flatten(0, 1), expected["forward_sample"])
    assert_equal_as_stored(found.ref_sample.flatten(0, 1), expected["forward_ref_sample"])
    torch.testing.assert_close(found.commit_loss, expected["commit_loss"][0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.dyn_commit_loss, expected["dyn_commit_loss"][0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_loss_and_logits(world, expected):
    arguments = expected["tokens"], world.tokenizer.layout, expected["actions"]
    with arithmetic():
        loss, tail = world.transformer(*arguments).loss, world.transformer.logits(*arguments)[:, -20:]
    torch.testing.assert_close(loss.float(), expected["loss"][0], atol=tolerance(1e-5), rtol=0)
    torch.testing.assert_close(tail.float(), expected["logits_tail"], atol=tolerance(1e-4), rtol=0)


@exact_arithmetic
@pytest.mark.parametrize(("case", "sign"), [("greedy_tokens", 1), ("greedy_tokens_negated_actions", -1)])
def test_greedy_rollout(world, expected, case, sign):
    layout, frames = world.tokenizer.layout, expected["pixel_values"]
    preds = world.rollout(world.begin(frames[:, :T0]), sign * expected["actions"][:, T0 - 1 : -1], sampling="greedy")
    assert torch.equal(preds.tokens - layout.num_context_codes, layout.split(expected[case])[1])
    if sign == 1:
        pixels = expected["greedy_frames"][:, T0:].clamp(0, 1) * 255
        assert (preds.frames.movedim(-1, 2).float() - pixels).abs().max() <= 0.5 + 255 * 1e-3
    assert (expected["greedy_tokens"] != expected["greedy_tokens_negated_actions"]).any()
