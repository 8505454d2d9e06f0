"""What the command line tells about itself: help pages, the list of keys, completion. Loads neither torch nor Hydra,
but for completion, which asks Hydra.
"""
