"""Trajectories by the thousand: rollout plan, run, status, verify, retry; and export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mirage_env.cli.console import Meter, out, say
from mirage_env.errors import InvalidValueError

if TYPE_CHECKING:
    from mirage_env.rollout.config import Run
    from mirage_env.rollout.run import Outcome


app = typer.Typer(
    help="Generate trajectories by the thousand: plan, run, look after, export.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="What to generate; see docs/rollouts.md.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace values of the file, like steps=32.")
]
RolloutFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]


@app.command("plan")
def rollout_plan(
    file: RunFile,
    overrides: Overrides = None,
    shards: Annotated[int, typer.Option(min=1, help="How many workers would share the work.")] = 1,
) -> None:
    """Say what a run would cost: times this machine for a moment.

    [dim]mirage-env rollout plan RUN.yaml episodes=10000 --shards 8[/]
    """
    from datetime import datetime, timedelta

    from mirage_env.rollout.plan import plan

    run = _run_of(file, overrides)
    with out.status("timing this machine on the first unit"):
        found = plan(run, shards)
    finish = datetime.now() + timedelta(hours=found.hours)
    say(f"{found.episodes} episodes, at most {found.frames} frames, in {found.units} units")
    say(f"{_gigabytes(found.bytes)} in {found.files} files")
    say(f"{found.node_hours:.3g} node-hours on machines like this one: {found.frames_a_second:.1f} frames/s each")
    long = timedelta(seconds=round(3600 * found.hours))
    say(f"{shards} at a time: {long} (h:mm:ss); begun now, done {finish:%Y-%m-%d %H:%M}")
    say(f"a unit takes {found.seconds_a_unit:.0f} s: let SIGTERM have that long before SIGKILL")


@app.command("run")
def rollout_run(
    file: RunFile,
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the units go; name it again to go on.")] = Path(
        "rollout"
    ),
    shard: Annotated[
        str, typer.Option(help="i/N: every N-th unit from i on; auto or auto/N: as the cluster's array variables say.")
    ] = "0/1",
    workers: Annotated[str | None, typer.Option(help="ray, or ray:N for N workers.")] = None,
    keep: Annotated[str | None, typer.Option(help='Store only such episodes: "reprojection_rel < 0.1".')] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Generate what is not there yet. Stop it as you like: the same command goes on, to the same bytes.

    Exit code 3: something failed, see failures.jsonl, and the rest was done. 143: it was asked to stop, and did.

    [dim]mirage-env rollout run RUN.yaml --out night --shard 0/4[/]
    """
    from mirage_env.rollout.folder import RunFolder
    from mirage_env.rollout.run import Stop, mine, run_shard, shard_from_text

    run = _run_of(file, [*(overrides or []), *([f"keep={keep}"] if keep is not None else [])])
    part, total, place = shard_from_text(shard, os.environ), run.config.units, RunFolder(folder)
    if dry_run:
        run.check()
        todo = [unit for unit in mine(total, part) if not place.exists(unit)]
        say(f"{len(todo)} of {total} units would be generated, as shard {part[0]} of {part[1]}; for example")
        for job in run.jobs(todo[0]) if todo else []:
            way = job.trajectory or run.config.mover
            say(f"  episode {job.episode}, seed {job.seed}: {escape(f'{job.source.image or run.config.env}, {way}')}")
        return
    with Meter("generating", 1) as meter, Stop().on_signals() as stop:
        if workers is None:
            outcome = run_shard(run, str(folder), part, meter.update, stop)
        else:
            from mirage_env.rollout.on_ray import run_on_ray

            outcome = run_on_ray(run, str(folder), _ray_workers(workers), meter.update, stop)
    _tell_outcome(outcome, folder)


@app.command("status")
def rollout_status(folder: RolloutFolder) -> None:
    """Say how far a run is."""
    from mirage_env.rollout.folder import RunFolder

    place = RunFolder(folder)
    found = place.status()
    say(f"{found.units_done} of {found.units} units, {found.episodes_done} of {found.episodes} episodes")
    say(f"{found.frames} frames in {_gigabytes(found.bytes)}; {found.dropped} episodes refused by keep")
    if found.failed:
        say(f"{found.failed} episodes failed:")
        for line in place.failures()[:10]:
            say(f"  unit {line['unit']}, episode {line['episode']}: {escape(line['error'])}")
        say(f"try them again: [bold]mirage-env rollout retry {escape(str(folder))}[/]")


@app.command("verify")
def rollout_verify(folder: RolloutFolder) -> None:
    """Read every byte of every unit and say what does not fit; exit code 3 where something does not."""
    from mirage_env.rollout.folder import RunFolder

    place, wrong = RunFolder(folder), 0
    total = place.run().config.units
    with Meter("verifying", total, unit="units") as meter:
        count = 0
        for count, (_, faults) in enumerate(place.verify(), start=1):
            wrong += bool(faults)
            for fault in faults:
                say(f"[red]{escape(fault)}[/]")
            meter.update(count, total)
    say(f"{count - wrong} of {count} units are whole" + ("" if count == total else f"; {total - count} are missing"))
    if wrong:
        say("delete the .json of each that is not, and the command that made them makes them again")
        raise typer.Exit(3)


@app.command("retry")
def rollout_retry(folder: RolloutFolder) -> None:
    """Generate the units again in which something failed."""
    from mirage_env.rollout.folder import RunFolder
    from mirage_env.rollout.run import Stop, Worker

    place = RunFolder(folder)
    worker = Worker(place.run())
    with Meter("generating", 1) as meter, Stop().on_signals() as stop:
        outcome = worker.retry(place, meter.update, stop)
    _tell_outcome(outcome, folder)


def export(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run; for ply, also a saved world.")],
    form: Annotated[str, typer.Option("--to", help="minari, lerobot, webdataset, realestate10k, video or ply.")],
    target: Annotated[Path, typer.Option("--out", help="A new folder; it appears when it is whole.")],
    keep: Annotated[str | None, typer.Option(help='Only such episodes: "reprojection_rel < 0.1".')] = None,
) -> None:
    """Write a run's episodes in the format of other training code, or the memory of a saved world as points.

    [dim]mirage-env export night --to lerobot --out night-lerobot --keep "collisions == 0"[/]

    [dim]mirage-env export place.safetensors --to ply --out place[/]
    """
    from mirage_env.rollout.export import FORMATS
    from mirage_env.rollout.export import export as write

    with Meter("exporting", 1, unit="episodes") as meter:
        count = write(source, form, target, keep, meter.update)
    what = "the memory" if source.is_file() else f"{count} episodes"
    say(f"{what} in {escape(str(target))}: {FORMATS[form]}")


def _run_of(file: Path, overrides: list[str] | None) -> Run:
    from mirage_env.config import load_config
    from mirage_env.rollout.config import Run, RunConfig

    if file.suffix not in (".yaml", ".yml"):
        raise InvalidValueError(f"a run is described by a .yaml file, got {file}")
    return Run(load_config(file, RunConfig, overrides or []))


def _ray_workers(text: str) -> int | None:
    name, _, number = text.partition(":")
    if name != "ray" or not (number == "" or (number.isdecimal() and int(number) > 0)):
        raise InvalidValueError(f'--workers must be ray or ray:N, got "{text}"')
    return int(number) if number else None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _tell_outcome(outcome: Outcome, folder: Path) -> None:
    if not (outcome.units or outcome.failed or outcome.stopped):
        say(f"nothing was left to do in {escape(str(folder))}")
        return
    say(f"{outcome.episodes} episodes, {outcome.frames} frames, in {escape(str(folder))}")
    if outcome.failed:
        say(f"[red]{outcome.failed} episodes failed[/]; see {escape(str(folder / 'failures.jsonl'))}, then: ")
        say(f"  [bold]mirage-env rollout retry {escape(str(folder))}[/]")
    if outcome.stopped:
        say("stopped as asked, the unit in hand is whole; the same command goes on")
        raise typer.Exit(143)
    if outcome.failed:
        raise typer.Exit(3)
