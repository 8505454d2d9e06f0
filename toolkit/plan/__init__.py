"""``toolkit plan``: what a training will need, on whatever devices, before any of it is there."""
