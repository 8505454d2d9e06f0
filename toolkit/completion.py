"""Shell completion of overrides, asked of Hydra's own completion engine (private to Hydra, so isolated here)."""

from __future__ import annotations


def complete(command_name: str, incomplete: str) -> list[str]:
    """Completions of ``incomplete`` for the command: config groups, keys and option names. Empty when unsure."""
    from toolkit.commands import COMMANDS

    if command_name not in COMMANDS:
        return []
    try:
        return _ask_hydra(command_name, incomplete)
    except Exception:
        return []  # a shell prompt is no place for a traceback; an unknown key simply has no completion


def _ask_hydra(command_name: str, incomplete: str) -> list[str]:
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    from toolkit.commands import COMMANDS
    from toolkit.configs import register
    from toolkit.paths import conf_dir

    command = COMMANDS[command_name]
    register(command)
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("toolkit", create_config_search_path(str(conf_dir())))
    try:
        engine = BashCompletion(hydra.config_loader)
        return engine._query(config_name=command.primary, line=incomplete)
    finally:
        GlobalHydra.instance().clear()
