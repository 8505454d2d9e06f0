"""``python -m toolkit``: the command line for who starts Python himself, as torchrun and accelerate do."""

import sys

try:
    from toolkit.cli import main
except KeyboardInterrupt:
    print("toolkit: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

main()
