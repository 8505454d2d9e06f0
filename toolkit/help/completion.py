"""Shell completion of overrides, asked of Hydra's own completion engine (private to Hydra, so isolated here)."""

from __future__ import annotations


def complete(command_name: str, incomplete: str, before: list[str] | None = None) -> list[str]:
    """Completions of ``incomplete`` for the command: config groups, keys and values. Empty when unsure.

    ``before`` are the words in front of it: bash takes ``key=val`` for the three words ``key``, ``=`` and ``val``, and
    wants the value alone.
    """
    key = _key_before(before or [], incomplete)
    if key:
        return [word.partition("=")[2] for word in complete(command_name, f"{key}={incomplete}")]
    try:
        found = _choices(command_name, incomplete) or _ask_hydra(command_name, incomplete)
    except Exception:
        return []  # a shell prompt is no place for a traceback; an unknown key simply has no completion
    foreign = _foreign_presets(command_name)
    return [word for word in found if not word.endswith("_schema") and word.removeprefix("experiment=") not in foreign]


def _foreign_presets(command_name: str) -> set[str]:
    """Those of other commands."""
    from toolkit.paths import presets

    return {name for name, (owner, _) in presets().items() if owner != command_name}


def _key_before(before: list[str], incomplete: str) -> str:
    """The key whose value is being typed, where the shell split it off. Click hides an ``=`` that nothing follows."""
    if before[-1:] == ["="]:
        return before[-2] if len(before) > 1 else ""
    bare = bool(before) and before[-2:-1] != ["="] and "=" not in before[-1] and not before[-1].startswith("-")
    return before[-1] if bare and not incomplete else ""


def _choices(command_name: str, incomplete: str) -> list[str]:
    """``precision=`` and its like: the options that the schema names."""
    from toolkit.commands import COMMANDS
    from toolkit.configs import primary_schema
    from toolkit.schema import fields_of

    key, equals, value = incomplete.partition("=")
    fields = {name: item for name, item, _ in fields_of(primary_schema(COMMANDS[command_name])())}
    options = fields[key].metadata.get("options", ()) if equals and key in fields else ()
    return [f"{key}={option}" for option in options if option.startswith(value)]


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
