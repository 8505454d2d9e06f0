"""Both training losses of iVideoGPT written out: the tokenizer's, the adversarial pair's, the transformer's."""

import pytest
import torch
from torch.nn import functional as F

from tests.ivideogpt import tiny
from toolkit.ivideogpt.clips import arrange
from toolkit.ivideogpt.config import TokenizerLoss
from toolkit.ivideogpt.train.losses import TokenizerObjective, balance, fakes, generator_loss, hinge
from toolkit.ivideogpt.train.perceptual import GradientDistance
from toolkit.ivideogpt.train.transformer import TransformerObjective, tokenise
from toolkit.zoo.world.codebook import CodebookEMA, VectorQuantizer

RNG = torch.Generator().manual_seed(0)
CONTEXT = torch.rand(2, 1, 3, 16, 16, generator=RNG)
FUTURE = torch.rand(2, 2, 3, 16, 16, generator=RNG)


def test_the_tokenizers_loss_is_its_sum():
    """Pixels count 1 + the larger of motion and contrast; context by contrast alone; both frames are perceived."""
    keys = {"motion_weight": 3.0, "contrast_weight": 2.0, "perceptual_weight": 0.3, "commitment": 0.25}
    objective = TokenizerObjective(tiny.tokenizer(), TokenizerLoss(**keys), GradientDistance())
    terms, found = objective(CONTEXT, FUTURE, True)
    loss = 0.0
    for made, true, mover in ((found.sample, FUTURE, 3.0), (found.ref_sample, CONTEXT, 0.0)):
        middle = true.flatten(3).sort(dim=3).values[..., (16 * 16 - 1) // 2][..., None, None]
        contrast = 2.0 * (true - middle).abs().max(dim=2, keepdim=True).values
        motion = mover * (true - CONTEXT[:, -1:]).abs().max(dim=2, keepdim=True).values
        loss = loss + ((1 + torch.maximum(contrast, motion)) * (made - true).abs()).mean()
        loss = loss + 0.3 * GradientDistance()(made.flatten(0, 1), true.flatten(0, 1)).mean()
    books = (
        (objective.tokenizer.quantize, found.context_latents),
        (
            objective.tokenizer.dynamics_quantize,
            found.dynamics_latents,
        ),
    )
    for quantizer, latents in books:
        z = latents.reshape(-1, latents.shape[-1])
        nearest = ((z[:, None] - quantizer.embedding.weight) ** 2).sum(2).min(1).values
        loss = loss + 1.25 * nearest.mean() / z.shape[1]
    assert terms["loss"].item() == pytest.approx(loss.item(), rel=1e-4)


def test_of_two_context_frames_each_is_perceived_beside_itself():
    context = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    objective = TokenizerObjective(tiny.tokenizer(context_length=2), TokenizerLoss(), GradientDistance())
    terms, found = objective(context, FUTURE, True)
    mine = [GradientDistance()(found.ref_sample[:, frame], context[:, frame]) for frame in (0, 1)]
    assert terms["context_perceptual"].item() == pytest.approx(torch.cat(mine).mean().item(), rel=1e-5)
    swapped = [GradientDistance()(found.ref_sample[:, 1 - frame], context[:, frame]) for frame in (0, 1)]
    assert abs(torch.cat(swapped).mean() - torch.cat(mine).mean()) > 1e-4


def test_the_balance_of_two_gradients_is_the_ratio_of_their_norms_up_to_ten_thousand():
    small, large = torch.tensor([3.0, 4.0]), torch.tensor([[6.0], [8.0]])
    assert balance(large, small).item() == pytest.approx(2.0)
    assert balance(large, small / 4000).item() == pytest.approx(8000)
    assert balance(large, small / 6000).item() == balance(large, 0 * small).item() == 10_000


def test_codes_are_drawn_to_latents_and_latents_to_codes_by_their_weights():
    torch.manual_seed(1)
    quantizer = VectorQuantizer(5, 3, commitment=0.25)
    torch.nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(7, 3, requires_grad=True)
    out = quantizer(z)
    e = quantizer.embedding.weight[out.codes]
    out.loss.backward()
    assert torch.equal(out.codes, ((z[:, None] - quantizer.embedding.weight) ** 2).sum(2).argmin(1))
    torch.testing.assert_close(z.grad, (0.25 * 2 * (z - e) / 21).detach())
    wanted = torch.zeros(5, 3).index_add_(0, out.codes, (2 * (e - z) / 21).detach())
    torch.testing.assert_close(quantizer.embedding.weight.grad, wanted)
    z.grad = None
    quantizer(z).vectors.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))  # straight through


def test_codes_follow_their_latents_at_the_averages_decay():
    torch.manual_seed(2)
    quantizer = VectorQuantizer(3, 2)
    torch.nn.init.normal_(quantizer.embedding.weight)
    table = quantizer.embedding.weight.detach().clone()
    latents, codes = torch.randn(5, 2), torch.tensor([0, 0, 1, 0, 1])
    CodebookEMA(quantizer, decay=0.8).update(latents, codes)
    for code, rows in ((0, [0, 1, 3]), (1, [2, 4]), (2, [])):
        count, total = 0.8 + 0.2 * len(rows), 0.8 * table[code] + 0.2 * latents[rows].sum(0)
        torch.testing.assert_close(quantizer.embedding.weight[code], total / count)


def scored(scale=1.0):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 1, 4, stride=4)
    layer.weight.data.mul_(scale)
    return layer


def test_the_generator_is_rewarded_for_what_passes_as_real_and_the_discriminator_for_telling():
    objective = TokenizerObjective(tiny.tokenizer(), TokenizerLoss(), GradientDistance())
    terms, found = objective(CONTEXT, FUTURE, True)
    last = objective.tokenizer.cond_decoder.conv_out.weight
    made = torch.cat([found.ref_sample.flatten(0, 1), found.sample.flatten(0, 1)])
    true = torch.cat([CONTEXT.flatten(0, 1), FUTURE.flatten(0, 1)])
    layer = scored()
    fooled = -layer(made).mean()
    sizes = [torch.autograd.grad(one, last, retain_graph=True)[0].norm() for one in (terms["perceptual"], fooled)]
    wanted = (sizes[0] / sizes[1] * fooled).item()
    assert generator_loss(layer, found, terms, objective.tokenizer).item() == pytest.approx(wanted, rel=1e-4)
    assert abs(wanted) > 1e-4
    fake, real = F.relu(1 + layer(made)).mean().item(), F.relu(1 - layer(true)).mean().item()
    assert hinge(layer, fakes(found), -1).item() == pytest.approx(fake, rel=1e-5)
    assert hinge(layer, true, 1).item() == pytest.approx(real, rel=1e-5)


def test_the_transformers_loss_is_next_token_cross_entropy_after_the_first_slot_and_the_rewards_error():
    """By transformers' own Llama, a row at a time: token i is predicted from tokens before it and from the actions."""
    world, config = tiny.world(), tiny.config()
    config.optim.transformer.reward_weight, config.optim.transformer.first_frame_weight = 0.7, 3.0
    clip = tokenise(world.tokenizer, arrange(tiny.clips().train.sample(3, 0, "x"), config), torch.device("cpu"))
    statistics = tiny.clips().statistics
    network, layout = world.transformer, world.tokenizer.layout
    terms = TransformerObjective(network, world.tokenizer, config, statistics)(clip)
    per_context, per_frame, num_future = layout.tokens_per_context, layout.tokens_per_frame, 3
    first = per_context  # where the first S2 stands: one context frame of N tokens before it
    actions = (clip.actions - torch.from_numpy(statistics["mean"])) / torch.from_numpy(statistics["std"])
    losses, frame_1, tokens, errors = [], [], [], []
    for row in range(3):
        embeds = network.llm.model.embed_tokens(clip.tokens[row])[None].clone()
        ends = []
        for frame in range(num_future):
            slot = first + frame * (per_frame + 1)
            embeds[0, slot] += network.action_linear(actions[row, frame])
            ends.append(slot + per_frame)
        hidden = network.llm.model(inputs_embeds=embeds).last_hidden_state[0]
        log_probs = network.llm.lm_head(hidden).log_softmax(-1)
        for place in range(first + 1, clip.tokens.shape[1]):
            nats = -log_probs[place - 1, clip.tokens[row, place]]
            losses.append(nats)
            inside = (place - first) % (per_frame + 1)
            tokens += [nats] if inside else []
            frame_1 += [nats] if inside and place - first <= per_frame else []
        for frame, end in enumerate(ends):
            reward = clip.rewards[row, frame]
            target = reward.sign() * (1 + reward.abs()).log()
            errors.append((network.reward_linear(hidden[end])[0] - target) ** 2)
    mean = lambda values: torch.stack(values).mean().item()  # noqa: E731
    assert terms["tokens"].item() == pytest.approx(mean(tokens), rel=1e-4)
    assert terms["frame_1"].item() == pytest.approx(mean(frame_1), rel=1e-4)
    assert terms["reward"].item() == pytest.approx(mean(errors), rel=1e-4)
    wanted = mean(losses) + 2.0 * mean(frame_1) / 3 + 0.7 * mean(errors)
    assert terms["loss"].item() == pytest.approx(wanted, rel=1e-4)


def test_the_substitute_of_lpips_compares_neighbours_at_three_scales():
    x, y = torch.rand(2, 3, 8, 12, generator=RNG), torch.rand(2, 3, 8, 12, generator=RNG)
    found, wanted = GradientDistance()(x, y), torch.zeros(2)
    for _ in range(3):
        across = (x[..., 1:] - x[..., :-1]) - (y[..., 1:] - y[..., :-1])
        down = (x[..., 1:, :] - x[..., :-1, :]) - (y[..., 1:, :] - y[..., :-1, :])
        wanted = wanted + across.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)
        x, y = (sum(one[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4 for one in (x, y))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
