"""The `mirage-env` command. Thin: it parses, calls and prints; heavy imports stay inside the commands.

A new command is one function here, and its imports stay inside it, so that `--help` is instant.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mirage_env.errors import InvalidValueError, MirageError, UnknownNameError

if TYPE_CHECKING:
    from mirage_env.rollout.config import Run
    from mirage_env.rollout.run import Outcome

app = typer.Typer(
    help="One image in, a persistent 3D-consistent world out.\n\nStart with: [bold]mirage-env demo[/]",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
Weights = Annotated[
    Path | None, typer.Option(help="A folder of weights of your own, such as [bold]mirage-env train[/] leaves.")
]


@app.command()
def demo(
    image: Annotated[
        str, typer.Option(help="Path of your picture, or a built-in one by name ([bold]mirage-env info[/] lists them).")
    ] = "room",
    folder: Annotated[Path, typer.Option("--out", help="Where the files go; made when missing.")] = Path("mirage-out"),
    frames: Annotated[int, typer.Option(min=1, help="Frames to generate after the picture itself.")] = 64,
    trajectory: Annotated[str, typer.Option(help="walk, look-around or loop; each ends where it began.")] = "walk",
    chunk: Annotated[
        int, typer.Option(min=1, help="Frames generated together: more is faster, fewer reacts sooner.")
    ] = 8,
    size: Annotated[str, typer.Option(help="Frame size in pixels: 128, or HEIGHTxWIDTH.")] = "128",
    seed: Annotated[int, typer.Option(help="The same seed gives the same frames on a CPU.")] = 0,
    preset: Annotated[str, typer.Option(help="Which model, by name, or the path of a .yaml file.")] = "mirage-tiny",
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Turn one picture into a walk: video, depth, poses and a contact sheet on disk.

    [dim]mirage-env demo --image kitchen.jpg --out kitchen --trajectory look-around[/]
    """
    from mirage_env.artefacts import prepare_folder, write_walk
    from mirage_env.config import load_config
    from mirage_env.demo import trajectory as poses_of
    from mirage_env.errors import check_count
    from mirage_env.images import load_image
    from mirage_env.world_model import Preset, generate, load_world

    height_width = parse_size(size)
    check_count("seed", seed, least=0)
    load_config(preset, Preset)
    poses = poses_of(trajectory, frames)
    source = load_image(image, height_width)  # a bad picture or folder is told before the models load
    target = prepare_folder(folder)
    load_world(preset, height_width, device, weights)
    with _Meter("generating", frames) as meter:
        episode = generate(
            image, poses, preset=preset, size=height_width, chunk=chunk, seed=seed, device=device, weights=weights,
            progress=meter.update,
        )  # fmt: skip
    files = write_walk(
        target,
        episode.frames,
        {**episode.metadata, "image": source.source, "image_sha256": source.sha256, "trajectory": trajectory},
        title=f"{Path(image).stem}: a {trajectory} of {frames} frames",
        subtitle=f"{preset}, {height_width[0]} x {height_width[1]}, seed {seed}; frame 0 is the picture itself",
    )
    out.print(f"{frames} frames in {meter.seconds:.1f} s: {meter.rate:.1f} frames a second once running\n")
    for file in files:
        out.print(f"  {escape(str(file))}", style="bold" if file.suffix in (".mp4", ".png") else "")
    if image == "room":
        out.print("\nNext, your own picture:  [bold]mirage-env demo --image my.jpg[/]  (or make demo IMAGE=my.jpg)")
    else:
        out.print("\nNext, walk in it yourself:  [bold].venv/bin/python examples/quickstart.py[/]")


@app.command()
def info(
    preset: Annotated[
        str | None, typer.Argument(help="Only how this preset's worlds run: a name, or the path of a .yaml file.")
    ] = None,
) -> None:
    """What is installed: versions, device, presets, weights, built-in images, environment ids."""
    if preset is not None:
        out.print(escape(_preset_line(preset)))
        return
    import gymnasium
    import torch
    from rich.table import Table

    from mirage_env.artefacts import versions
    from mirage_env.config import preset_names
    from mirage_env.images import builtin_names
    from mirage_env.resources import revision

    cpu = f"cpu, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    table = Table.grid(padding=(0, 3))
    table.add_column(style="bold", no_wrap=True)
    table.add_row("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))
    table.add_row("revision", revision() or "installed from a wheel")
    table.add_row("device", device)
    for name in preset_names():
        table.add_row("preset", escape(_preset_line(name)))
    table.add_row("images", ", ".join(builtin_names()))
    table.add_row("environments", ", ".join(sorted(name for name in gymnasium.registry if name.startswith("Mirage"))))
    for line in _weights_lines():
        table.add_row("weights", escape(line))
    out.print(table)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A preset, or a checkpoint of the hub as OWNER/NAME.")],
) -> None:
    """Download the public checkpoints that a preset names. The only command that goes to the network.

    [dim]mirage-env fetch wan2.2-ti2v-5b[/]
    """
    from mirage_env.weights.checkpoint import fetch as download

    if "/" in name and not name.endswith((".yaml", ".yml")):
        names = [name]
    else:
        from mirage_env.config import load_config
        from mirage_env.world_model import Preset

        names = load_config(name, Preset).checkpoints()
    for checkpoint in names:
        out.print(f"{checkpoint}: {escape(str(download(checkpoint)))}")
    if not names:
        out.print(f"{escape(name)} needs nothing from the hub")


@app.command()
def data(
    source: Annotated[Path, typer.Argument(help="Camera files, each beside the video or the pictures of its name.")],
    folder: Annotated[Path, typer.Option("--out", help="The store; name it again to go on.")],
    preset: Annotated[str, typer.Option(help="Whose codec, depth, masks and text encoder.")] = "wan2.2-ti2v-5b",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH.")] = "704x1280",
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of a clip; longer videos give several clips.")] = 3,
    every: Annotated[int, typer.Option(min=1, help="Every how many-th frame of a video is taken.")] = 1,
    shard: Annotated[str, typer.Option(help="I/N: only the I-th of N shares, into a shard of its own.")] = "1/1",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Turn real videos with known cameras into the store that a full-size adapter is trained on.

    [dim]mirage-env data RealEstate10K/train --out store --shard 3/8[/]
    """
    from mirage_env.training.full_size import fill_store
    from mirage_env.training.video import VideoConfig
    from mirage_env.world_model import resolve_device

    share = [int(number) if number.isdecimal() else 0 for number in shard.split("/")]
    if len(share) != 2 or not 1 <= share[0] <= share[1]:
        raise InvalidValueError(f'shard must look like 3/8, the third of eight, got "{shard}"')
    config, place = VideoConfig(parse_size(size), chunks=chunks, every=every), str(resolve_device(device))
    with _Meter("videos", 1, unit="videos") as meter:
        skipped = fill_store(source, folder, preset, config, place, share[0] - 1, share[1], meter.update)
    for name, reason in skipped.items():
        out.print(f"skipped {escape(name)}: {escape(reason)}", style="yellow")
    out.print(f"the store is in {escape(str(folder))}; the same command goes on")


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Argument(
            help="render, codec, perception, latents, refiner, denoiser, walks, finetune, invention, glimpses or "
            "sight; the paper's backbone, branch or lora, where the recipe has them; all: one after another."
        ),
    ] = "all",
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "--preset",
            help="A name in envs_config/train, a folder like those in it, or a preset (.yaml) whose adapter it is.",
        ),
    ] = "mirage-tiny",
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Clips, checkpoints and weights; runs/RECIPE if not told. The same one goes on."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Full size: the store of videos that [bold]mirage-env data[/] made.")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="A folder of photographs that the codec learns from beside the simulator.")
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(help="Stop learning after so many; the same call goes on. Clips and latents are made whole."),
    ] = math.inf,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A few steps of every stage, to see that all of it runs.")
    ] = False,
) -> None:
    """Train the embedded model anew, or an adapter at full size. Every stage goes on where it was cut off.

    [dim]mirage-env train --photos ~/Pictures --minutes 10[/]
    [dim]mirage-env train --recipe mirage-tiny-two-stage[/]  the paper's two stages instead of joint training
    [dim]tensorboard --logdir runs[/]  shows losses and sample strips (with the extra "train").
    [dim]mirage-env train --preset wan2.2-ti2v-5b --data STORE[/]  (on several GPUs: docs/full-size.md)
    """
    from mirage_env.artefacts import prepare_folder
    from mirage_env.training.recipe import AdapterRecipe, load_recipe, run_stage
    from mirage_env.world_model import resolve_device

    out.quiet = os.environ.get("RANK", "0") != "0"  # of several processes the first one speaks
    recipe = "smoke" if smoke else recipe
    plan, place = load_recipe(recipe), str(resolve_device(device))
    if stage not in (known := ("all", *plan.stages)):  # before a folder is made for it
        raise UnknownNameError("training stage", stage, known)
    target = prepare_folder(folder or Path("runs") / Path(recipe).name.removesuffix(".yaml"))
    deadline = time.monotonic() + 60.0 * minutes
    for name in plan.stages if stage == "all" else (stage,):
        with _Meter(name, 1, unit="steps") as meter:

            def tell(done: int, total: int, values: dict[str, float], meter: _Meter = meter) -> None:
                meter.update(done, total, f"loss {values['loss']:.3g}" if "loss" in values else "")

            whole = run_stage(name, plan, target, photos, data, place, deadline - time.monotonic(), tell)
        if not whole:
            out.print(f"{name} is not finished; the same command goes on")
            return
    place = escape(str(target if isinstance(plan, AdapterRecipe) else target / "weights"))
    out.print(f"done; the weights are in {place}", soft_wrap=True)
    if not isinstance(plan, AdapterRecipe):
        own = "" if plan.data.preset == "mirage-tiny" else f" --preset {plan.data.preset}"
        out.print("\nNext, walk in them, and score them:")
        out.print(f"  [bold]mirage-env demo{own} --weights {place}[/]", soft_wrap=True)
        out.print(f"  [bold]mirage-env eval run{own} --weights {place} --scenes 4[/]", soft_wrap=True)


@app.command()
def bench(
    full: Annotated[
        bool, typer.Option("--full", help="704 x 1280 with the architecture of Wan2.2's VAE; minutes, 8 GB.")
    ] = False,
    chunks: Annotated[int, typer.Option(min=1, help="How many chunks both memories grow over.")] = 10,
    endless: Annotated[
        int | None,
        typer.Option(min=11, help="Instead: walk on for so many chunks; what the last costs beside the 10th."),
    ] = None,
    rule: Annotated[str, typer.Option(help="paper: every cell and pixel is stored. novel: what is new.")] = "paper",
    folder: Annotated[Path, typer.Option("--out", help="bench.json and bench.html go there.")] = Path("bench"),
    preset: Annotated[str, typer.Option(help="Which model, where not --full.")] = "mirage-tiny",
) -> None:
    """What remembering costs: latent beside RGB memory, in time and bytes, chunk by chunk (the paper's Figure 5).

    [dim]mirage-env bench --chunks 20 --out bench[/]
    [dim]mirage-env bench --endless 1000 --out bench[/]
    """
    import torch

    from mirage_env.artefacts import prepare_folder
    from mirage_env.evaluation import memory_bench as measure

    target = prepare_folder(folder)
    if endless is not None:
        _bench_endless(target, endless, full, preset)
        return
    split: dict[str, dict[str, float]] = {}
    encode_ms = None
    if full:
        scale = measure.FULL
        with _Meter("one encode", 1, "pictures") as meter:
            encode_ms = measure.encode_once(measure.WAN22, scale.size)
            meter.update(1, 1)
        encode = measure.no_encode(scale)
    else:
        from mirage_env.world_model import load_world

        model = load_world(preset, device="cpu")
        scale, encode = measure.tiny(model), model.encode
        with _Meter("whole chunks", 1, "chunks") as meter:
            split = measure.end_to_end(model, max(5, chunks), meter.update)
    with torch.inference_mode():
        with _Meter("chunks", chunks, "chunks") as meter:
            costs = measure.over_chunks(scale, chunks, encode, rule, meter.update, encode_ms)
        grown = measure.growth()
    ways = measure.bytes_every_way(scale, 5)
    files = measure.write_report(target, scale, costs, ways, grown, split)
    _print_bench(scale, costs, ways, split)
    for file in files:
        out.print(f"  {escape(str(file))}", style="bold" if file.suffix == ".html" else "")


def _bench_endless(target: Path, chunks: int, full: bool, preset: str) -> None:
    """The whole model in small pictures and its memory alone; with `full`, the memory of the paper's size alone."""
    import torch
    from rich.table import Table

    from mirage_env.evaluation import endless
    from mirage_env.evaluation import memory_bench as measure
    from mirage_env.evaluation.candidates import latent_config
    from mirage_env.memory import MemoryConfig
    from mirage_env.world_model import load_world

    walks = []
    scale, config = measure.FULL, MemoryConfig(max_points=2**20, token_dtype="float16")
    if not full:
        small = load_world(preset, (64, 64), device="cpu")
        with _Meter("whole chunks", chunks, unit="chunks") as meter:
            walks.append(endless.whole_chunks(small, chunks, meter.update))
        scale, config = measure.tiny(load_world(preset, device="cpu")), latent_config(small)
    with torch.inference_mode(), _Meter("memory alone", chunks, unit="chunks") as meter:
        walks.append(endless.memory_alone(scale, config, chunks, meter.update))
    for walk in walks:
        rows = Table(title=f"{walk.name}: {walk.about}")
        for column in ("chunk", "points", "memory MiB", "resident MiB", "read ms", "write ms", "all ms"):
            rows.add_column(column, justify="right")
        for mark in walk.marks:
            sizes = f"{mark.points:,}", f"{mark.bytes / 2**20:.2f}", f"{mark.resident_mib:.0f}"
            rows.add_row(f"{mark.chunk:,}", *sizes, *(f"{mark.ms[part]:.1f}" for part in ("read", "write", "all")))
        for after, row in ((endless.EARLY, walk.early_ms), (chunks, walk.late_ms)):
            rows.add_row(f"{after:,} in turn", "", "", "", *(f"{row[part]:.1f}" for part in ("read", "write", "all")))
        out.print(rows)
        grew = f"resident memory {walk.growth_mib:+.0f} MiB over the second half"
        out.print(f"{walk.name}: chunk {chunks:,} costs [bold]{walk.ratio:.2f}x[/] chunk {endless.EARLY}; {grew}\n")
    for file in endless.write_report(target, walks):
        out.print(f"  {escape(str(file))}", style="bold" if file.suffix == ".html" else "")


def _print_bench(scale, costs, ways, split) -> None:  # type: ignore[no-untyped-def]
    from rich.table import Table

    from mirage_env.evaluation.memory_bench import PAPER_SPEED

    table = Table(title=f"{scale.name}: one read of one frame, and the cache")
    for column in ("chunk", "latent ms", "RGB ms", "of it encode", "ratio", "latent MiB", "RGB MiB", "ratio"):
        table.add_column(column, justify="right")
    for latent, rgb in zip(costs["latent"], costs["rgb"], strict=True):
        table.add_row(
            str(latent.chunk), f"{latent.read_ms:.2f}", f"{rgb.read_ms:,.1f}", f"{rgb.encode_ms:,.1f}",
            f"{rgb.read_ms / latent.read_ms:,.1f}", f"{latent.bytes / 2**20:.2f}", f"{rgb.bytes / 2**20:.1f}",
            f"{rgb.bytes / latent.bytes:.1f}",
        )  # fmt: skip
    out.print(table)
    table = Table(title="Cache at chunk 5, every cell and pixel stored; the paper says 55")
    for column in ("stored", "counted", "latent MiB", "RGB MiB", "ratio"):
        table.add_column(column, justify="left" if column in ("stored", "counted") else "right")
    for way in ways:
        sizes = (f"{way['latent'] / 2**20:.2f}", f"{way['rgb'] / 2**20:.1f}", f"{way['ratio']:.1f}")
        table.add_row(way["stored"], way["counted"], *sizes)
    out.print(table)
    if split:
        table = Table(title="One chunk of 8 frames, end to end, ms; see: depth and masks")
        parts = list(dict.fromkeys(part for row in split.values() for part in row))
        for column in ("memory", *parts):
            table.add_column(column, justify="right")
        for name, row in split.items():
            table.add_row(name, *(f"{row.get(part, 0.0):.1f}" for part in parts))
        out.print(table)
        ratio = split["rgb"]["all"] / split["latent"]["all"]
        out.print(f"end to end the RGB memory takes [bold]{ratio:.2f}x[/] as long; the paper says {PAPER_SPEED}x\n")


evaluation = typer.Typer(
    help="How good the generated world is: frozen suites, scores with intervals, a report.\n\n"
    "Start with: [bold]mirage-env eval run --suite novel-view --scenes 4[/]",
    no_args_is_help=True,
)
app.add_typer(evaluation, name="eval")
Scenes = Annotated[int | None, typer.Option(min=1, help="Only the first so many scenes; all where not given.")]
SuiteName = Annotated[str, typer.Option(help="A frozen suite; [bold]mirage-env eval list[/] tells them.")]


@evaluation.command("run")
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


@evaluation.command("score")
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


@evaluation.command("export")
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
    with _Meter("writing", min(scenes or len(chosen.takes), len(chosen.takes)), unit="scenes") as meter:
        target = export_suite(chosen, folder, parse_size(size), scenes, meter.update)
    out.print(f"first.png and cameras.json of every scene are in {escape(str(target))}")
    out.print(f"put {frame_name(1)}, {frame_name(2)}, ... beside them, then:")
    out.print(f"  [bold]mirage-env eval score --pred {escape(str(target))} --suite {suite}[/]")


@evaluation.command("list")
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
    with _Meter(suite.name, total, unit="scenes") as meter:
        results = run_suite(suite, model, candidates, target, scenes=scenes, cache=cache, report=meter.update)
    files = write_report(target, suite, model, candidates, results, preset)
    print_summary(out, suite.name, results)
    for file in files:
        out.print(f"  {escape(str(file))}", style="bold" if file.suffix == ".html" else "")


agents = typer.Typer(
    help="Agents that live in these worlds: train, examine and watch them.\n\n"
    "In this order: [bold]pool[/] draws pictures to make worlds from (or bring a folder of your own), [bold]train[/] "
    "learns in them, [bold]eval[/] and [bold]watch[/] put the agent into true scenes that it has never seen, "
    "[bold]prove[/] does all that for every method and compares them. Configs are YAML in envs_config/agents; every "
    "value can be said anew as key=value.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(agents, name="agent")
_Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as [bold]key=value[/], such as ppo.learning_rate=1e-3.")
]


@agents.command("train")
def agent_train(
    config: Annotated[str, typer.Argument(help="A name in envs_config/agents, or the path of a .yaml file.")],
    overrides: _Overrides = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Checkpoint, curve, TensorBoard; name it again to go on.")
    ] = Path("runs/agent"),
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes, to go on with another call.")] = math.inf,
) -> None:
    """Train PPO in a world. [dim]mirage-env agent train explore world.kwargs.images=photos ppo.total_steps=20000[/]

    Named configs: explore, point-goal. The same command goes on where it was cut off; curve.jsonl and tensorboard/ in
    the folder tell how it learns.
    """
    from mirage_env.agents.config import load
    from mirage_env.agents.worlds import check_world

    plan = load(config, overrides or ())
    check_world(plan.world)  # a mistake is told before a folder is made
    _needs_stable_baselines3()
    from mirage_env.agents.ppo import train

    with _Meter("training", plan.ppo.total_steps, unit="steps") as meter:

        def tell(done: int, total: int, values: dict[str, float]) -> None:
            meter.update(done, total, "  ".join(f"{key} {value:.3g}" for key, value in values.items()))

        whole = train(plan, folder, minutes, tell)
    out.print(f"{'done' if whole else 'not finished; the same command goes on'}: {escape(str(folder))}")


@agents.command("eval")
def agent_eval(
    config: Annotated[str, typer.Argument(help="As for [bold]train[/]; its [bold]test[/] world is the examination.")],
    overrides: _Overrides = None,
    agent: Annotated[str, typer.Option(help="ppo, explorer or random; unless said, what the config names.")] = "",
    folder: Annotated[Path, typer.Option("--from", help="Where PPO was trained.")] = Path("runs/agent"),
) -> None:
    """Examine an agent: mean scores with 95% intervals. [dim]mirage-env agent eval explore --agent explorer[/]

    Whoever is examined walks in the same episodes: the k-th is reset with first_test_seed + k. spl is success weighted
    by the shortest way over the way walked; known_m3 are cubic metres that became known.
    """
    from mirage_env.agents.config import load
    from mirage_env.agents.evaluation import evaluate, make_agent, summary

    plan = load(config, overrides or ())
    name = _agent_name(agent or plan.agent)
    seeds = range(plan.first_test_seed, plan.first_test_seed + plan.test_episodes)
    with _Meter("episodes", plan.test_episodes, unit="episodes") as meter:
        scores = evaluate(lambda env: make_agent(name, plan, env, folder), plan.test, seeds, meter.update)
    out.print(f"{name} in {plan.test.id}, {plan.test_episodes} episodes of at most {plan.test.steps} steps:")
    for key, (mean, low, high, _) in summary(scores).items():
        out.print(f"  {key:<14} {mean:9.3f}  ({low:.3f} to {high:.3f})")


@agents.command("watch")
def agent_watch(
    config: Annotated[str, typer.Argument(help="As for [bold]train[/]; its [bold]test[/] world is filmed.")],
    overrides: _Overrides = None,
    agent: Annotated[str, typer.Option(help="ppo, explorer or random; unless said, what the config names.")] = "",
    folder: Annotated[Path, typer.Option("--from", help="Where PPO was trained.")] = Path("runs/agent"),
    video: Annotated[Path, typer.Option("--out", help="The video, with the map beside the picture.")] = Path(
        "agent.mp4"
    ),
) -> None:
    """Film one episode. [dim]mirage-env agent watch explore --agent explorer test.id=Mirage-v0[/]"""
    from mirage_env.agents.config import load
    from mirage_env.agents.evaluation import film, make_agent
    from mirage_env.artefacts import prepare_folder

    plan = load(config, overrides or ())
    name = _agent_name(agent or plan.agent)
    prepare_folder(video.parent)
    scores = film(lambda env: make_agent(name, plan, env, folder), plan.test, plan.first_test_seed, video)
    out.print(f"{escape(str(video))}: " + ", ".join(f"{key} {value:.3g}" for key, value in scores.items()))


@agents.command("pool")
def agent_pool(
    folder: Annotated[Path, typer.Option("--out", help="Where the pictures go.")] = Path("runs/pool"),
    count: Annotated[int, typer.Option(min=1, help="How many scenes give one picture each.")] = 64,
    first: Annotated[
        int, typer.Option(min=0, help="Seed of the first scene; training's begin at 1000000.")
    ] = 1_000_000,
    stride: Annotated[int, typer.Option(min=1, help="From one seed to the next.")] = 9,
    size: Annotated[str, typer.Option(help="Pixels: 64, or HEIGHTxWIDTH.")] = "64",
) -> None:
    """Draw single pictures of simulated scenes, to make worlds from. [dim]mirage-env agent pool --count 16[/]"""
    from mirage_env.agents.worlds import draw_pool

    with _Meter("pictures", count, unit="pictures") as meter:
        draw_pool(folder, range(first, first + count * stride, stride), parse_size(size), meter.update)
    out.print(f"{count} pictures in {escape(str(folder))}")


@agents.command("prove")
def agent_prove(
    config: Annotated[str, typer.Argument(help="A name in envs_config/proof, or the path of a .yaml file.")] = "full",
    overrides: _Overrides = None,
    folder: Annotated[Path, typer.Option("--out", help="Cells, table and curves; name it again to go on.")] = Path(
        "runs/proof"
    ),
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes, to go on with another call.")] = math.inf,
    videos: Annotated[bool, typer.Option(help="Film one episode of every method in the end.")] = False,
) -> None:
    """Does an agent that learned in dreams do well in the true world? [dim]mirage-env agent prove small[/]

    Trains PPO in generated worlds, in the simulator, in drafts and without eyes, and examines all of them, random and
    scripted agents in the same true scenes. Every (task, method, seed) is done once and kept: call it again to go on,
    with more seeds or tasks=\\[point_goal], or run it twice at once to use two cores.
    """
    from mirage_env.agents.config import PROOFS, load

    _needs_stable_baselines3()
    from mirage_env.agents.proof import ProofConfig, film_cells, prove, write_report

    if "=" in config:  # the name may be left out
        config, overrides = "full", [config, *(overrides or ())]
    plan = load(config, overrides or (), ProofConfig, PROOFS)
    with _Meter("proof", 1, unit="steps") as meter:

        def tell(cell: str, done: int, total: int, values: dict[str, float]) -> None:
            meter.update(done, total, cell + "  " + "  ".join(f"{key} {value:.3g}" for key, value in values.items()))

        whole = prove(plan, folder, minutes, tell)
    table = write_report(plan, folder)
    if videos:
        film_cells(plan, folder)
    out.print(escape(table.read_text("utf-8")), soft_wrap=True)
    out.print(f"{'complete' if whole else 'not complete; the same command goes on'}: {escape(str(table))}")


def _agent_name(name: str) -> str:
    from mirage_env.agents.evaluation import AGENTS

    if name not in AGENTS:
        raise UnknownNameError("agent", name, AGENTS)
    if name == "ppo":
        _needs_stable_baselines3()
    return name


def _needs_stable_baselines3() -> None:
    from importlib.util import find_spec

    if find_spec("stable_baselines3") is None:
        raise InvalidValueError('PPO needs Stable-Baselines3; install it with pip install "mirage-env[agents]"')


rollout = typer.Typer(
    help="Generate trajectories by the thousand: plan, run, look after, export.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(rollout, name="rollout")
RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="What to generate; see docs/rollouts.md.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace values of the file, like steps=32.")
]
RolloutFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]


@rollout.command("plan")
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
    _say(f"{found.episodes} episodes, at most {found.frames} frames, in {found.units} units")
    _say(f"{_gigabytes(found.bytes)} in {found.files} files")
    _say(f"{found.node_hours:.3g} node-hours on machines like this one: {found.frames_a_second:.1f} frames/s each")
    long = timedelta(seconds=round(3600 * found.hours))
    _say(f"{shards} at a time: {long} (h:mm:ss); begun now, done {finish:%Y-%m-%d %H:%M}")
    _say(f"a unit takes {found.seconds_a_unit:.0f} s: let SIGTERM have that long before SIGKILL")


@rollout.command("run")
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
        _say(f"{len(todo)} of {total} units would be generated, as shard {part[0]} of {part[1]}; for example")
        for job in run.jobs(todo[0]) if todo else []:
            way = job.trajectory or run.config.mover
            _say(f"  episode {job.episode}, seed {job.seed}: {escape(f'{job.source.image or run.config.env}, {way}')}")
        return
    with _Meter("generating", 1) as meter, Stop().on_signals() as stop:
        if workers is None:
            outcome = run_shard(run, str(folder), part, meter.update, stop)
        else:
            from mirage_env.rollout.on_ray import run_on_ray

            outcome = run_on_ray(run, str(folder), _ray_workers(workers), meter.update, stop)
    _tell_outcome(outcome, folder)


@rollout.command("status")
def rollout_status(folder: RolloutFolder) -> None:
    """Say how far a run is."""
    from mirage_env.rollout.folder import RunFolder

    place = RunFolder(folder)
    found = place.status()
    _say(f"{found.units_done} of {found.units} units, {found.episodes_done} of {found.episodes} episodes")
    _say(f"{found.frames} frames in {_gigabytes(found.bytes)}; {found.dropped} episodes refused by keep")
    if found.failed:
        _say(f"{found.failed} episodes failed:")
        for line in place.failures()[:10]:
            _say(f"  unit {line['unit']}, episode {line['episode']}: {escape(line['error'])}")
        _say(f"try them again: [bold]mirage-env rollout retry {escape(str(folder))}[/]")


@rollout.command("verify")
def rollout_verify(folder: RolloutFolder) -> None:
    """Read every byte of every unit and say what does not fit; exit code 3 where something does not."""
    from mirage_env.rollout.folder import RunFolder

    place, wrong = RunFolder(folder), 0
    total = place.run().config.units
    with _Meter("verifying", total, unit="units") as meter:
        count = 0
        for count, (_, faults) in enumerate(place.verify(), start=1):
            wrong += bool(faults)
            for fault in faults:
                _say(f"[red]{escape(fault)}[/]")
            meter.update(count, total)
    _say(f"{count - wrong} of {count} units are whole" + ("" if count == total else f"; {total - count} are missing"))
    if wrong:
        _say("delete the .json of each that is not, and the command that made them makes them again")
        raise typer.Exit(3)


@rollout.command("retry")
def rollout_retry(folder: RolloutFolder) -> None:
    """Generate the units again in which something failed."""
    from mirage_env.rollout.folder import RunFolder
    from mirage_env.rollout.run import Stop, Worker

    place = RunFolder(folder)
    worker = Worker(place.run())
    with _Meter("generating", 1) as meter, Stop().on_signals() as stop:
        outcome = worker.retry(place, meter.update, stop)
    _tell_outcome(outcome, folder)


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run; for ply, also a saved world.")],
    form: Annotated[str, typer.Option("--to", help="minari, lerobot, webdataset, realestate10k, video or ply.")],
    target: Annotated[Path, typer.Option("--out", help="A new folder; it appears when it is whole.")],
    keep: Annotated[str | None, typer.Option(help='Only such episodes: "reprojection_rel < 0.1".')] = None,
) -> None:
    """Write a run's episodes in the format of other training code, or the memory of a saved world as points.

    [dim]mirage-env export night --to lerobot --out night-lerobot --keep "collisions == 0"[/]

    [dim]mirage-env export place.safetensors --to ply --out place[/]
    """
    from mirage_env.rollout.export import FORMATS, export

    with _Meter("exporting", 1, unit="episodes") as meter:
        count = export(source, form, target, keep, meter.update)
    what = "the memory" if source.is_file() else f"{count} episodes"
    _say(f"{what} in {escape(str(target))}: {FORMATS[form]}")


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
        _say(f"nothing was left to do in {escape(str(folder))}")
        return
    _say(f"{outcome.episodes} episodes, {outcome.frames} frames, in {escape(str(folder))}")
    if outcome.failed:
        _say(f"[red]{outcome.failed} episodes failed[/]; see {escape(str(folder / 'failures.jsonl'))}, then: ")
        _say(f"  [bold]mirage-env rollout retry {escape(str(folder))}[/]")
    if outcome.stopped:
        _say("stopped as asked, the unit in hand is whole; the same command goes on")
        raise typer.Exit(143)
    if outcome.failed:
        raise typer.Exit(3)


def _say(text: str) -> None:
    """A line for people that may hold a path, and so is not cut where the window ends."""
    out.print(text, soft_wrap=True)


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) from "128" or "96x160"."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidValueError(f'size must look like 128 or 96x160 (HEIGHTxWIDTH), got "{text}"')
    return int(parts[0]), int(parts[-1])


def _preset_line(name: str) -> str:
    """A preset, and the mode that its worlds run in."""
    from mirage_env.config import load_config
    from mirage_env.weights.checkpoint import WEIGHTS, is_diffusers, is_hub_id
    from mirage_env.world_model import Preset

    preset = load_config(name, Preset)
    if preset.mode == "training-free":
        return f"{name}: memory training-free (readout tokens in the sample)"
    if preset.weights is None and not (WEIGHTS / name).is_dir():
        return f"{name}: to be trained (mirage-env train --recipe {name})"
    public = preset.weights is not None and (is_hub_id(preset.weights) or is_diffusers(Path(preset.weights)))
    if preset.adapter is None:
        return f"{name}: memory trained" + (", needs an adapter (none is named)" if public else "")
    return f"{name}: memory trained, by the adapter {preset.adapter}"


def _weights_lines() -> list[str]:
    """One line a file: size, hash, and the short entries of its card."""
    from mirage_env.resources import WEIGHTS, sha256_of
    from mirage_env.weights import read_card

    lines = []
    for path in sorted(WEIGHTS.rglob("*.safetensors")):
        try:
            card = read_card(path)
            short = {key: value for key, value in card.items() if isinstance(value, (str, int, float))}
            about = ", ".join(f"{key} {str(value)[:40]}" for key, value in short.items() if key != "codec_hash")
        except MirageError as error:
            about = str(error)
        lines.append(
            f"{path.relative_to(WEIGHTS)}, {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256_of(path)[:12]}; {about}"
        )
    return lines or ["none"]


class _Meter:
    """A progress bar with its rate, and how long the work took."""

    def __init__(self, what: str, total: int, unit: str = "frames"):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=out,
        )
        self._task = self._bar.add_task(what, total=total, rate="", note="")
        self._total, self._unit = total, unit
        self._marks: list[tuple[float, int]] = []

    def __enter__(self) -> _Meter:
        self._start = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._bar.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        self._marks = [*self._marks[:1], (time.perf_counter(), done)]
        rate = f"{self.rate:.1f} {self._unit}/s" if self.rate else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate, note=note)

    @property
    def rate(self) -> float:
        """Frames a second from the first report to the last, so without loading; over everything where there is one."""
        if len(self._marks) >= 2:
            (begin, first), (end, last) = self._marks[0], self._marks[-1]
            return (last - first) / max(end - begin, 1e-9)
        return self._total / self.seconds if hasattr(self, "seconds") else 0.0


def main() -> None:
    """Entry point: a caller's mistake is one sentence on stderr and exit code 2."""
    try:
        app()
    except MirageError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
