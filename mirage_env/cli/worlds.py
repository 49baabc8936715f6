"""Commands about worlds and what they are made with: demo, info, fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mirage_env.cli.console import Meter, Weights, out, parse_size
from mirage_env.errors import MirageError


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
    with Meter("generating", frames) as meter:
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
