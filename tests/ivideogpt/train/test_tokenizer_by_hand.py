"""The tokenizer's training loop against one written out: rates, clipping, the adversary's turn, the codes' averages."""

import pytest
import torch

from tests.ivideogpt import tiny
from tests.ivideogpt.train.test_steps_by_hand import logged, opened, rate
from toolkit.ivideogpt.clips import tokenizer_frames
from toolkit.ivideogpt.train.tokenizer import train_tokenizer
from toolkit.runs.device import make_accelerator
from toolkit.runs.seeds import generator, seed_all
from toolkit.zoo.world.discriminator import PatchDiscriminator

STEPS, CODES_FROM, GAN_FROM = 5, 1, 2


def settings(kind):
    config = tiny.config(log_every_steps=1)
    optim, loss, book = config.optim.tokenizer, config.tokenizer_loss, config.codebook
    optim.num_steps, optim.warmup_steps, optim.schedule, optim.lr = STEPS, 2, "cosine", 5e-3
    optim.weight_decay, optim.grad_clip = 0.4, 0.3
    book.kind, book.decay, book.warmup_steps = kind, 0.8, CODES_FROM
    loss.gan, loss.gan_start_step, loss.gan_weight, loss.gan_depth, loss.gan_hidden = True, GAN_FROM, 0.6, 2, 8
    return config


def pairs(found):
    """Latents (M, D) and codes (M,) of each codebook."""
    context = found.context_latents.flatten(0, -2).detach(), found.context_codes.flatten()
    dynamics = found.dynamics_latents.flatten(0, -2).detach(), found.dynamics_codes.flatten()
    return {"context": context, "dynamics": dynamics}


def adversary(discriminator, made, reference, last):
    """-D of what was made, as large at the last convolution as the reconstruction's gradient."""
    fooled = -discriminator(made).mean()
    sizes = [torch.autograd.grad(one, last, retain_graph=True)[0].norm().item() for one in (reference, fooled)]
    return sizes[0] / sizes[1] * fooled


def step_of(optimizer, parameters, loss, lr=None):
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.3)
    if lr is not None:
        optimizer.param_groups[0]["lr"] = lr
    optimizer.step()
    return norm.item()


class Written:
    """The loop of appendix A.2 with codes by gradient or by averages, kept apart from the code's."""

    def __init__(self, kind):
        self.network = tiny.tokenizer().train()
        self.books = {"context": self.network.quantize, "dynamics": self.network.dynamics_quantize}
        self.by_average = kind == "ema"
        for book in self.books.values():
            book.embedding.weight.requires_grad_(not self.by_average)
        self.counts = {name: torch.ones(16) for name in self.books}
        self.sums = {name: book.embedding.weight.detach().clone() for name, book in self.books.items()}
        learnt = [one for one in self.network.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, weight_decay=0.4)
        self.discriminator = PatchDiscriminator(hidden_channels=8, depth=2)
        self.of_discriminator = torch.optim.AdamW(self.discriminator.parameters(), lr=5e-3)

    def begin_codes(self, context, future):
        """Each codebook starts at latents drawn without repetition."""
        with torch.no_grad():
            encoded = pairs(self.network(context, future, False))
        for name, (latents, _) in encoded.items():
            drawn = latents[torch.randperm(len(latents), generator=generator(0, "codebook", name))[:16]]
            self.books[name].embedding.weight.data.copy_(drawn)
            self.counts[name], self.sums[name] = torch.ones(16), drawn.clone()

    def follow(self, found):
        for name, (latents, codes) in pairs(found).items():
            for code in range(16):
                mine = latents[codes == code]
                self.counts[name][code] = 0.8 * self.counts[name][code] + 0.2 * len(mine)
                self.sums[name][code] = 0.8 * self.sums[name][code] + 0.2 * mine.sum(0)
            self.books[name].embedding.weight.data.copy_(self.sums[name] / self.counts[name][:, None])

    def step(self, step, context, future):
        if step == CODES_FROM:
            self.begin_codes(context, future)
        quantize = step >= CODES_FROM
        found = self.network(context, future, quantize)
        reference = (found.sample - future).abs().mean()
        loss = reference + (found.ref_sample - context).abs().mean()
        loss = loss + (found.commit_loss + found.dyn_commit_loss if quantize else 0)
        told = {"loss": loss.item()}
        made = torch.cat([found.ref_sample.flatten(0, 1), found.sample.flatten(0, 1)])
        if step >= GAN_FROM:
            fooled = adversary(self.discriminator, made, reference, self.network.cond_decoder.conv_out.weight)
            loss, told["adversarial"] = loss + 0.6 * fooled, fooled.item()
        told["grad_norm"] = step_of(self.optimizer, self.network.parameters(), loss, rate(step, 5e-3, STEPS, 2))
        if step >= GAN_FROM:
            true = torch.cat([context.flatten(0, 1), future.flatten(0, 1)])
            hinge = (1 + self.discriminator(made.detach())).clamp(min=0).mean()
            hinge = hinge + (1 - self.discriminator(true)).clamp(min=0).mean()
            step_of(self.of_discriminator, self.discriminator.parameters(), hinge)
            told["discriminator"] = hinge.item()
        if quantize and self.by_average:
            self.follow(found)
        return told


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_the_tokenizers_loop_is_the_one_written_out(tmp_path, kind):
    config, clips = settings(kind), tiny.clips()
    run = opened(tmp_path, config)
    torch.manual_seed(3)
    with run.stage("tokenizer"):
        made = train_tokenizer(tiny.tokenizer(), run, config, clips, make_accelerator(config))
    run.close("done")

    torch.manual_seed(3)
    written, told = None, []
    for step in range(STEPS):
        batch = tokenizer_frames(clips.train.sample(2, 0, "tokenizer", step, 0), config, 0, step)
        written = written or Written(kind)
        seed_all(0, "tokenizer", 0, step)  # the network's dropout
        told.append(written.step(step, *batch))
    for key in ("loss", "adversarial", "discriminator", "grad_norm"):
        wanted = [row[key] for row in told if key in row]
        assert logged(tmp_path, key) == pytest.approx(wanted, rel=2e-3), key
    assert not made.training
    again = written.network.state_dict()
    for name, one in made.state_dict().items():
        torch.testing.assert_close(one, again[name], rtol=2e-2, atol=2e-3, msg=name)
