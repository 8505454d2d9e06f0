"""Token arithmetic: lengths, slots, targets, the inverse layout, and the reductions that the paper's settings give."""

from __future__ import annotations

import itertools

import pytest
import torch

from toolkit.zoo.world.tokens import IGNORED, TokenLayout

LAYOUTS = [TokenLayout(T0, N, n, 11, 7) for T0, N, n in itertools.product((1, 2, 3), (4, 16), (1, 4))]


def released(context_length):
    return TokenLayout(context_length, 256, 16, 8192, 8192)


def random_codes(layout, num_future, num=2):
    generator = torch.Generator().manual_seed(num_future)
    context = torch.randint(
        layout.num_context_codes, (num, layout.context_length, layout.tokens_per_context), generator=generator
    )
    dynamics = torch.randint(layout.num_dynamics_codes, (num, num_future, layout.tokens_per_frame), generator=generator)
    return context, dynamics


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("num_future", [1, 2, 5])
def test_the_stream_is_laid_out_as_the_formulas_say(layout, num_future):
    context, dynamics = random_codes(layout, num_future)
    tokens = layout.join(context, dynamics)
    T0, N, n = layout.context_length, layout.tokens_per_context, layout.tokens_per_frame
    assert tokens.shape[1] == layout.length(num_future) == (N + 1) * T0 + (n + 1) * num_future - 1
    assert layout.num_future(tokens.shape[1]) == num_future
    # built by hand: frame after frame, each opened by its slot, the very first slot dropped
    stream = [token for frame in context[0] for token in [layout.context_slot, *frame.tolist()]][1:]
    stream += [
        token for frame in dynamics[0] for token in [layout.frame_slot, *(frame + layout.num_context_codes).tolist()]
    ]
    assert tokens[0].tolist() == stream
    assert [i for i, token in enumerate(stream) if token == layout.frame_slot] == layout.slot_indices(num_future)
    assert torch.equal(layout.prompt(context), tokens[:, : layout.prompt_length])
    assert layout.prompt_length == (N + 1) * T0


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_splitting_is_the_inverse_of_joining(layout):
    context, dynamics = random_codes(layout, 3)
    found = layout.split(layout.join(context, dynamics))
    assert torch.equal(found[0], context) and torch.equal(found[1], dynamics)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_labels_supervise_everything_after_the_first_slot(layout):
    tokens = layout.join(*random_codes(layout, 4))
    labels = layout.labels(tokens)
    supervised = labels != IGNORED
    assert supervised.sum(1).tolist() == [layout.num_targets(4)] * 2 == [(layout.tokens_per_frame + 1) * 4 - 1] * 2
    assert torch.equal(labels[supervised], tokens[supervised])
    assert not supervised[:, : layout.prompt_length].any()


def test_ids_do_not_overlap():
    layout = released(2)
    assert (layout.context_slot, layout.frame_slot, layout.vocab_size) == (16384, 16385, 16386)


@pytest.mark.parametrize(
    ("context_length", "num_frames", "length", "per_frame", "ratio"),
    [(1, 16, 511, 4111, 8.05), (2, 16, 751, 4111, 5.47), (2, 12, 683, 3083, 4.51), (2, 17, 768, 4368, 5.69)],
    ids=["BAIR", "OXE", "RoboNet", "goal"],
)
def test_the_reductions_of_the_papers_settings(context_length, num_frames, length, per_frame, ratio):
    found = released(context_length).length(num_frames - context_length)
    full = num_frames * 257 - 1  # every frame a context frame
    assert (found, full) == (length, per_frame)
    assert round(full / found, 2) == ratio


def test_the_asymptotic_reductions():
    layout = released(1)
    assert layout.tokens_per_context / layout.tokens_per_frame == 16
    slope = layout.length(10**6) / 10**6
    assert round(257 / slope, 1) == 15.1


def test_horizons_that_fit_1024_positions():
    assert [released(T0).max_future(1024) for T0 in (1, 2)] == [45, 30]
    assert [released(T0).length(F) for T0, F in ((1, 45), (2, 30))] == [1021, 1023]
    assert released(1).max_future(100) == 0


def test_what_does_not_fit_is_refused():
    layout = TokenLayout(1, 4, 2, 11, 7)
    with pytest.raises(ValueError, match="9 tokens: not 1 context frames of 4 tokens"):
        layout.num_future(9)
    with pytest.raises(ValueError, match="3 tokens"):
        layout.num_future(3)
    with pytest.raises(ValueError, match=r"ids outside 0 \.\. 10"):
        layout.split(torch.tensor([[1, 2, 3, 11, 19, 12, 13]]))
