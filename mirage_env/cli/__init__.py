"""The `mirage-env` command. Thin: it parses, calls and prints.

A new command is one function in a module here, and its imports stay inside it, so that `--help` is instant.
"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from mirage_env.cli import agents, bench, evaluation, rollout, training, worlds
from mirage_env.errors import MirageError

app = typer.Typer(
    help="One image in, a persistent 3D-consistent world out.\n\nStart with: [bold]mirage-env demo[/]",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (worlds.demo, worlds.info, worlds.fetch, training.data, training.train, bench.bench, rollout.export):
    app.command()(command)
for name, group in (("eval", evaluation), ("agent", agents), ("rollout", rollout)):
    app.add_typer(group.app, name=name)


def main() -> None:
    """Entry point: a caller's mistake is one sentence on stderr and exit code 2."""
    try:
        app()
    except MirageError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        raise SystemExit(2) from None
