"""How good a world is: eval run, score, export, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mirage_env.cli.console import Meter, Weights, out, parse_size
from mirage_env.errors import InvalidValueError

app = typer.Typer(
    help="How good the generated world is: frozen suites, scores with intervals, a report.\n\n"
    "Start with: [bold]mirage-env eval run --suite novel-view --scenes 4[/]",
    no_args_is_help=True,
)
Scenes = Annotated[int | None, typer.Option(min=1, help="Only the first so many scenes; all where not given.")]
SuiteName = Annotated[str, typer.Option(help="A frozen suite; [bold]mirage-env eval list[/] tells them.")]


@app.command("run")
def eval_run(
    suite: SuiteName = "novel-view",
    scenes: Scenes = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Results; name it again to go on. [dim]eval/SUITE[/]")
    ] = None,
    ablations: Annotated[str, typer.Option("--with", help="Ablations or memories beside the model, with commas.")] = "",
    weights: Weights = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER[,PRESET] of weights trained otherwise, as one more row; repeatable."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a suite: recorded pictures with cameras: a camera file of RealEstate10K or JSON."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="With --inputs: where the pictures lie, if not beside.")] = None,
    metres_per_unit: Annotated[float, typer.Option(help="With --inputs: the scale of their translations.")] = 1.0,
    camera_height: Annotated[float, typer.Option(help="With --inputs: of the first camera, in metres.")] = 1.2,
    frames: Annotated[int, typer.Option(min=2, help="With --inputs: at most so many frames of each walk.")] = 33,
    size: Annotated[str, typer.Option(help="Frame size in pixels: 128, or HEIGHTxWIDTH.")] = "128",
    preset: Annotated[str, typer.Option(help="Which model, by name, or the path of a .yaml file.")] = "mirage-tiny",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Keep rendered truth here between runs.")] = None,
) -> None:
    """Score the model, its baselines and any ablations on a suite; write report.html and report.json.

    [dim]mirage-env eval run --suite closed-loop --with paper-write,true-depth --out eval/closed-loop[/]
    [dim]mirage-env eval run --weights runs/mirage-tiny --beside two-stage=runs/mirage-tiny-two-stage[/]
    [dim]... --beside rgb=runs/mirage-tiny-rgb,mirage-tiny-rgb[/]  a row with a preset of its own, here another memory
    """
    from mirage_env.evaluation.candidates import STANDARD, choose_ablations, other_model
    from mirage_env.evaluation.inputs import read_inputs
    from mirage_env.evaluation.suites import load_suite
    from mirage_env.world_model import load_world

    height_width = parse_size(size)
    chosen = read_inputs(inputs, images, metres_per_unit, camera_height, frames) if inputs else load_suite(suite)
    candidates = STANDARD | choose_ablations([name for name in ablations.split(",") if name])
    for text in beside or []:
        name, _, place = text.partition("=")
        place, _, own = place.partition(",")
        if not name.replace("-", "").isalnum() or not place:  # a name is also that of files
            raise InvalidValueError(
                f"--beside takes NAME=FOLDER or NAME=FOLDER,PRESET, NAME of letters, digits and hyphens, got {text}"
            )
        if name in candidates:
            raise InvalidValueError(f'--beside {text}: the row "{name}" is taken; give another name')
        other = load_world(own or preset, height_width, device, weights=Path(place))
        candidates[name] = other_model(other, Path(place))
    model = load_world(preset, height_width, device, weights)
    _evaluate(chosen, model, candidates, folder, scenes, cache, preset)


@app.command("score")
def eval_score(
    pred: Annotated[Path, typer.Option(help="Frames that another system made, as [bold]eval export[/] says.")],
    suite: SuiteName = "novel-view",
    scenes: Scenes = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Results; name it again to go on. [dim]eval/SUITE[/]")
    ] = None,
    size: Annotated[str, typer.Option(help="Frame size in pixels: 128, or HEIGHTxWIDTH.")] = "128",
    preset: Annotated[str, typer.Option(help="Whose codec and warps stand beside it.")] = "mirage-tiny",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Keep rendered truth here between runs.")] = None,
) -> None:
    """Score frames that any other system made for a suite.

    [dim]mirage-env eval score --pred theirs --suite novel-view[/]
    """
    from mirage_env.evaluation.candidates import REFERENCES, STANDARD, submission
    from mirage_env.evaluation.suites import load_suite
    from mirage_env.world_model import load_world

    candidates = {"submission": submission(pred)} | {name: STANDARD[name] for name in REFERENCES}
    model = load_world(preset, parse_size(size), device)
    _evaluate(load_suite(suite), model, candidates, folder, scenes, cache, preset)


@app.command("export")
def eval_export(
    folder: Annotated[Path, typer.Option("--out", help="Where the inputs go; made when missing.")],
    suite: SuiteName = "novel-view",
    scenes: Scenes = None,
    size: Annotated[str, typer.Option(help="Frame size in pixels: 128, or HEIGHTxWIDTH.")] = "128",
) -> None:
    """Write a suite's first pictures and cameras, for other systems to continue."""
    from mirage_env.evaluation.exchange import export_suite, frame_name
    from mirage_env.evaluation.suites import load_suite

    chosen = load_suite(suite)
    with Meter("writing", min(scenes or len(chosen.takes), len(chosen.takes)), unit="scenes") as meter:
        target = export_suite(chosen, folder, parse_size(size), scenes, meter.update)
    out.print(f"first.png and cameras.json of every scene are in {escape(str(target))}")
    out.print(f"put {frame_name(1)}, {frame_name(2)}, ... beside them, then:")
    out.print(f"  [bold]mirage-env eval score --pred {escape(str(target))} --suite {suite}[/]")


@app.command("list")
def eval_list() -> None:
    """What can be evaluated: suites, and the ablations and memories for --with."""
    from rich.table import Table

    from mirage_env.evaluation.candidates import ABLATIONS, STANDARD, other_memory
    from mirage_env.evaluation.suites import load_suite, suite_names
    from mirage_env.memory.protocol import memory_kinds

    table = Table.grid(padding=(0, 3))
    for name in suite_names():
        suite = load_suite(name)
        table.add_row("suite", f"[bold]{name}[/]", f"{len(suite.takes)} scenes, version {suite.version}: {suite.about}")
    memories = {name: other_memory(name) for name in memory_kinds()}
    for kind, group in (("always", STANDARD), ("ablation", ABLATIONS), ("memory", memories)):
        for name, candidate in group.items():
            table.add_row(kind, f"[bold]{name}[/]", candidate.about)
    out.print(table)


def _evaluate(suite, model, candidates, folder, scenes, cache, preset) -> None:  # type: ignore[no-untyped-def]
    """Runs, prints the headline and says where the report lies."""
    from mirage_env.artefacts import prepare_folder
    from mirage_env.evaluation.report import print_summary, write_report
    from mirage_env.evaluation.run import run_suite

    target = prepare_folder(folder or Path("eval") / suite.name)
    total = min(scenes or len(suite.takes), len(suite.takes))
    with Meter(suite.name, total, unit="scenes") as meter:
        results = run_suite(suite, model, candidates, target, scenes=scenes, cache=cache, report=meter.update)
    files = write_report(target, suite, model, candidates, results, preset)
    print_summary(out, suite.name, results)
    for file in files:
        out.print(f"  {escape(str(file))}", style="bold" if file.suffix == ".html" else "")
