"""Frames that show the true context where nothing has changed."""

import numpy as np
import torch

from tests.zoo.world.nano_world import nano_clips, nano_world
from toolkit.zoo.world.composite import NEAR, composite
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.state import as_bytes

GRAY, HUED, RED = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.55, 0.47, 0.5]), torch.tensor([0.9, 0.1, 0.1])


def picture(background, thing=None, column=0):
    made = background[:, None, None].repeat(1, 6, 6)
    if thing is not None:
        made[:, 2, column] = thing
    return made


def test_what_the_context_lost_comes_back_where_nothing_changed_and_where_a_thing_has_left():
    true, decoded = picture(HUED, RED, 1), picture(GRAY, RED, 1)
    true[:, 5, 5] = 0.0  # a still thing that the tokens leave out
    frames = torch.stack([decoded, picture(GRAY, RED, 4)])[None]
    made = composite(frames, decoded[None], true[None])[0]
    torch.testing.assert_close(made[0], true)
    moved = picture(HUED, RED, 4)
    moved[:, 5, 5] = 0.0
    torch.testing.assert_close(made[1], moved)  # the thing as it was drawn; its old place has the background's hue


def test_what_is_lost_comes_back_in_part_where_a_pixel_changed_in_part_and_not_at_all_where_it_is_another():
    true, decoded = picture(HUED)[None], picture(GRAY)[None]
    lost = (HUED - GRAY).view(3, 1, 1)
    for change, share in ((0.0, 1.0), (NEAR / 2, 0.5 + 0.5 * 0.75), (NEAR, 0.5), (2 * NEAR, 0.0), (3 * NEAR, 0.0)):
        frames = (decoded + change)[:, None]
        torch.testing.assert_close(composite(frames, decoded, true), frames + share * lost)


def test_a_world_composes_its_frames_with_the_context_it_began_with(tmp_path):
    context = as_bytes(nano_clips(2)[0][:, :2])
    plain, composed = (nano_world(kept_frames=2, composite=one) for one in (False, True))
    actions = torch.zeros(2, plain.spec.max_future + 3, 3)
    preds = [world.rollout(world.begin(context), actions, on_overflow="recontext") for world in (plain, composed)]
    assert torch.equal(preds[0].tokens, preds[1].tokens) and preds[1].recontextualised == (plain.spec.max_future,)
    assert not torch.equal(preds[0].frames, preds[1].frames)
    state, layout = preds[1].state, composed.tokenizer.layout
    assert torch.equal(as_bytes(state.kept.frame), context[:, -1])
    codes = preds[1].tokens[:, -1:] - layout.num_context_codes
    wanted = composite(
        composed.tokenizer.decode_frames(codes, state.context), state.context.frames[:, -1], state.kept.frame
    )
    assert torch.equal(as_bytes(wanted)[:, 0], preds[1].frames[:, -1])
    composed.save_pretrained(tmp_path)
    again = WorldModel.from_pretrained(tmp_path)
    assert again.config == composed.config and again.config["composite"] and again.config["kept_frames"] == 2
    assert np.array_equal(context.shape, (2, 2, 16, 16, 3))
