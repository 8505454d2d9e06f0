"""The job commands: one entry each, and the names that a paper goes by. Imports nothing heavy: help costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Command:
    """A job command: ``room`` is the package that holds ``config.py`` (no torch), ``job.py`` and ``bench.py``."""

    name: str
    room: str
    help: str
    prefix: str  # of its presets' names, as in ``grow_tiny``
    examples: tuple[tuple[str, str], ...] = ()  # command line, what it does: for its help page
    keys: str = ""  # the most used ones, for its help page

    @property
    def primary(self) -> str:
        """Name of its primary config in conf/."""
        return self.name.replace("-", "_")

    @property
    def paper(self) -> str:
        """The one name of its paper on pages, in experiments/ and in records: the room's."""
        return self.room.rpartition(".")[2]


_COMMANDS = [
    Command(
        "train-disco",
        "toolkit.disco",
        "Train DisCo-Diff and its baseline, sample and measure.",
        "disco",
        examples=(
            ("toolkit train-disco", "the default: digits, 2 to 5 minutes on 2 cores"),
            ("toolkit train-disco experiment=disco_folder data.path=PHOTOS", "your own images"),
            ("toolkit train-disco -m seed=1,2,3 optim.lr=1e-3,2e-3", "a sweep of six runs"),
        ),
        keys="data data.path network latents.num_latents latents.codebook_size baseline stage "
        "optim.num_steps optim.batch_size optim.lr sampling.num_samples seed device",
    ),
    Command(
        "sample-icg",
        "toolkit.icg",
        "Sample with training-free guidance (ICG, TSG) and compare.",
        "icg",
        examples=(
            ("toolkit sample-icg", "the default: small models of digits, 1 minute"),
            ("toolkit sample-icg model=RUN guidance=tsg", "a trained model, guided by TSG"),
            ("toolkit sample-icg experiment=icg_sd21 'prompts=[a cat]' guidance.scale=3", "Stable Diffusion"),
        ),
        keys="model guidance guidance.scale compare labels prompts sampling.num_samples "
        "sampling.num_steps data network seed device",
    ),
    Command(
        "grow-llm",
        "toolkit.stacking",
        "Grow a language model; or pre-train, grow and compare.",
        "grow",
        examples=(
            ("toolkit grow-llm", "the default: 3 layers grown to 12, compared with controls, 8 minutes"),
            ("toolkit grow-llm stage=grow model=LLAMA factor=4 out=GROWN", "grow a checkpoint"),
            ("toolkit grow-llm stage=advise params=1.1e9 tokens=100e9", "when and by how much to grow"),
        ),
        keys="stage model operator factor out data data.path network.num_hidden_layers "
        "budget.tokens optim.lr seed device",
    ),
    Command(
        "train-ivideogpt",
        "toolkit.ivideogpt",
        "Train an interactive world model (iVideoGPT), roll it out, plan with it, measure.",
        "ivideogpt",
        examples=(
            ("toolkit train-ivideogpt", "the default: a world with a pushed block, 12 minutes"),
            ("toolkit train-ivideogpt experiment=ivideogpt_kuka", "a simulated robot arm"),
            ("toolkit train-ivideogpt data=episodes_folder data.path=EPISODES", "your own episodes"),
        ),
        keys="stage model init data data.path num_frames context_length action_conditioned "
        "optim.tokenizer.num_steps optim.transformer.num_steps plan.num_episodes seed device",
    ),
    Command(
        "enhance-video",
        "toolkit.venhancer",
        "Enlarge a video in space and time, with VEnhancer or without a network.",
        "enhance",
        examples=(
            ("toolkit enhance-video input=clip.mp4 scale=2.5 fps=24", "a larger, smoother video"),
            ("toolkit enhance-video experiment=enhance_classic input=clip.mp4", "without a network: fast"),
            ("toolkit enhance-video", "the default: a degraded street clip, compared with the original, 40 seconds"),
        ),
        keys="input output scale fps model backend fidelity between prompt start_s duration_s device",
    ),
]
COMMANDS = {command.name: command for command in _COMMANDS}


def paper_named(name: str, problem: str = "no such paper") -> Command:
    """The command of a paper called by its room (``stacking``), its command (``grow-llm``) or its presets (``grow``).

    Raises UserError for another name, with ``problem`` as what is wrong.
    """
    known = {alias: command for command in COMMANDS.values() for alias in (command.paper, command.name, command.prefix)}
    if name not in known:
        papers = ", ".join(command.paper for command in COMMANDS.values())
        raise UserError(f"{name}: {problem}; {did_you_mean(name, known)}choose one of {papers}")
    return known[name]
