"""``python -m toolkit``: the command line for who starts Python himself, as torchrun and accelerate do."""

from toolkit.cli import main

main()
