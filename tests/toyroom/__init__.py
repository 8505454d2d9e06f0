"""A room of its own for the runner's tests: a real command whose network trains in milliseconds.

Importing it registers ``toolkit train-toy``, in the workers of a parallel sweep too.
"""

from toolkit.commands import COMMANDS, Command

COMMANDS["train-toy"] = Command("train-toy", "tests.toyroom", "Fit a two-layer network to a sine.", "toy")
