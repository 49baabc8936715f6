"""Commands that make weights: data, train."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mirage_env.cli.console import Meter, out, parse_size
from mirage_env.errors import InvalidValueError, UnknownNameError


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
    with Meter("videos", 1, unit="videos") as meter:
        skipped = fill_store(source, folder, preset, config, place, share[0] - 1, share[1], meter.update)
    for name, reason in skipped.items():
        out.print(f"skipped {escape(name)}: {escape(reason)}", style="yellow")
    out.print(f"the store is in {escape(str(folder))}; the same command goes on")


def train(
    stage: Annotated[
        str,
        typer.Argument(
            help="render, codec, perception, latents, tiny_decoder, memory, refiner, denoiser, walks, finetune, "
            "invention, glimpses, sight, unseen, drawer, asked or dreams; the paper's backbone, branch or lora, where "
            "the recipe has them; all: one after another."
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
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="One stage alone goes on from a finished model, a folder of weights or the name of those that come "
            "with the package. Clips and walks are made by render, latents, glimpses, unseen and asked.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A few steps of every stage, to see that all of it runs.")
    ] = False,
) -> None:
    """Train the embedded model anew, or an adapter at full size. Every stage goes on where it was cut off.

    [dim]mirage-env train --photos ~/Pictures --minutes 10[/]
    [dim]mirage-env train invention --from mirage-tiny[/]  after render and latents: goes on from the weights that ship
    [dim]mirage-env train --recipe mirage-tiny-two-stage[/]  the paper's two stages instead of joint training
    [dim]tensorboard --logdir runs[/]  shows losses and sample strips (with the extra "train").
    [dim]mirage-env train --preset wan2.2-ti2v-5b --data STORE[/]  (on several GPUs: docs/full-size.md)
    """
    from mirage_env.artefacts import prepare_folder
    from mirage_env.training.recipe import AdapterRecipe, load_recipe, run_stage
    from mirage_env.weights.checkpoint import find
    from mirage_env.world_model import resolve_device

    out.quiet = os.environ.get("RANK", "0") != "0"  # of several processes the first one speaks
    recipe = "smoke" if smoke else recipe
    plan, place = load_recipe(recipe), str(resolve_device(device))
    if stage not in (known := ("all", *plan.stages)):  # before a folder is made for it
        raise UnknownNameError("training stage", stage, known)
    if start is not None:
        if stage == "all" or isinstance(plan, AdapterRecipe):
            raise InvalidValueError("--from lets one stage of the embedded model go on; name the stage before it")
        find(start)
    target = prepare_folder(folder or Path("runs") / Path(recipe).name.removesuffix(".yaml"))
    deadline = time.monotonic() + 60.0 * minutes
    for name in plan.stages if stage == "all" else (stage,):
        with Meter(name, 1, unit="steps") as meter:

            def tell(done: int, total: int, values: dict[str, float], meter: Meter = meter) -> None:
                meter.update(done, total, f"loss {values['loss']:.3g}" if "loss" in values else "")

            whole = run_stage(name, plan, target, photos, data, place, deadline - time.monotonic(), tell, start)
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
