"""Configs that several tests look at: composing one costs a fifth of a second."""

import functools

from toolkit.commands import COMMANDS
from toolkit.configs import compose


@functools.cache
def composed(command, *words):
    """What ``toolkit COMMAND WORDS`` is asked for, the same object each time: to be read, not changed."""
    return compose(COMMANDS[command], list(words))
