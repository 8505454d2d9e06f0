"""The pages of ``toolkit COMMAND --help`` and ``--keys``, drawn with rich; nothing else is loaded for them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from toolkit.commands import Command
from toolkit.help import keys
from toolkit.help.keys import Key
from toolkit.paths import presets
from toolkit.renamed import name_now

WIDE = 120  # columns from which types have a column of their own
MIDDLE = 24  # columns that a default or a type takes at most: the sentence needs the room
FLAGS = (
    ("--cfg job", "print the composed config without running"),
    ("--info defaults", "print where each part of the config comes from"),
    ("-m KEY=A,B,C", "a sweep; hydra/launcher=joblib runs it in parallel"),
    ("-- --help", "Hydra's own help"),
)


def print_help(command: Command, console: Console | None = None) -> None:
    """What a job command's help page has below its options: examples, presets, most used keys, Hydra's flags."""
    console = console or Console()
    found = {key.name: key for key in keys.keys_of(command)}
    common = [_brief(found[name]) for name in command.keys.split()]
    known = [(_name(name), Text(about)) for name, (_, about) in presets(command.name).items()]
    examples = [[Text.assemble((line, "bold"), f"\n    {about}")] for line, about in command.examples]
    _panel(console, "Examples", examples)
    _panel(console, f"Presets: experiment=NAME, default {found['experiment'].default}", known)
    _panel(console, f"Most used keys: KEY=VALUE, with defaults (--keys lists all {len(found)})", common)
    _panel(console, "Hydra's flags", [(_name(flag), Text(about)) for flag, about in FLAGS])


def print_keys(command: Command, words: Sequence[str], console: Console | None = None) -> None:
    """``toolkit COMMAND --keys WORDS``: tables on a terminal; elsewhere a line a key, with tabs, for grep and cut.

    Raises UserError where no key is found.
    """
    found = keys.find(command, list(words))
    for word in words:
        if new := name_now(command.name, word):
            print(f"toolkit: {word} is now {new}", file=sys.stderr)
    console = console or Console()
    if not console.is_terminal:
        for key in found:
            print(key.name, keys.shown(key.default, ","), _kind(key), key.meaning, sep="\t")
        return
    for (place, about), group in groupby(found, lambda key: (key.name.rpartition(".")[0], key.group)):
        title = f"{place}: {about}" if place else about
        console.print(Text(title or f"toolkit {command.name}", style="bold"))
        console.print(_table(_row(key, console.width >= WIDE) for key in group))
        console.print()


def _brief(key: Key) -> Sequence[Text]:
    return _name(key.name), Text(keys.shown(key.default)), Text(key.brief)


def _row(key: Key, wide: bool) -> Sequence[Text]:
    name, default, meaning = _name(key.name), Text(keys.shown(key.default)), Text(key.meaning)
    if wide:
        return name, default, Text(_kind(key), style="dim"), meaning
    return name, default, Text.assemble(meaning, " ", (f"[{_kind(key)}]", "dim"))


def _kind(key: Key) -> str:
    return f"{key.kind}; with {key.needs}" if key.needs else key.kind


def _name(text: str) -> Text:
    return Text(text, style="cyan")


def _panel(console: Console, title: str, rows: Sequence[Sequence[Text]]) -> None:
    if rows:
        console.print(Panel(_table(rows), title=title, title_align="left", border_style="dim"))


def _table(rows: Iterable[Sequence[Text]]) -> Table:
    """Columns side by side, each text wrapped inside its own; the last takes what is left."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for index, row in enumerate(rows):
        for place in range(len(row)) if index == 0 else ():
            table.add_column(overflow="fold", max_width=MIDDLE if 0 < place < len(row) - 1 else None)
        table.columns[-1].ratio = 1
        table.add_row(*row)
    return table
