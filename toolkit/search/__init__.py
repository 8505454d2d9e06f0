"""``toolkit search``: settings that make a command's objective small, by Optuna."""
