"""The full-size preset on paper: its real networks are laid out on the meta device, which has shapes but no memory, and
one chunk goes through them. Parameters, shapes, arithmetic and bytes are counted; nothing is timed.

    python benchmarks/full_size.py
    python benchmarks/full_size.py --size 480x832 --steps 20
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mirage_env.cli.console import parse_size
from mirage_env.codec.wan import WanCodec
from mirage_env.config import load_config
from mirage_env.denoise.denoiser import READOUT_CHANNELS, Denoiser
from mirage_env.denoise.pretrained import LoraShape, add_lora
from mirage_env.denoise.text import TEXT_TOKENS
from mirage_env.denoise.transformer import BRANCH, Kept, MemoryTransformer
from mirage_env.world_model import Preset


@dataclass(frozen=True)
class Count:
    """One part of a chunk."""

    flops: float
    """Of matrix products, convolutions and attention; a multiplication and an addition are two."""
    live_bytes: int
    """The most that its tensors took at one time, weights aside, as eager execution holds them."""
    traffic_bytes: float
    """What operations without arithmetic to speak of (sums, norms, casts, copies) read and write, each by itself."""
    output: tuple[int, ...]


_PRODUCTS = ("mm", "convolution", "attention", "empty")


class _Bytes(TorchDispatchMode):
    """How many bytes the tensors made inside take at one time, at most (every storage once, until it is let go), and
    how many pass through operations other than products."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.traffic, self._known = 0, 0, 0, set[int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if not function.is_view and not any(part in function._schema.name for part in _PRODUCTS):
            tensors = [x for x in tree_leaves((args, kwargs, output)) if isinstance(x, Tensor)]
            self.traffic += sum(x.numel() * x.element_size() for x in tensors)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())
        return output

    def _let_go(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def count(call: Callable[[], Tensor]) -> Count:
    """What a call of networks on the meta device, which returns a tensor, would compute and hold."""
    no_autocast = patch("torch.autocast", lambda *_, **__: nullcontext())  # there is none on the meta device
    with no_autocast, torch.inference_mode(), FlopCounterMode(display=False) as flops, _Bytes() as seen:
        output = call()
    return Count(float(flops.get_total_flops()), seen.most, float(seen.traffic), tuple(output.shape))


def build(preset: Preset) -> tuple[Denoiser, WanCodec]:
    """The preset's denoiser, with fresh LoRA, and its codec, in bfloat16 on the meta device."""
    config = preset.denoiser
    with torch.device("meta"):
        transformer = MemoryTransformer(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=config.channels,
            out_channels=config.channels,
            text_dim=config.text_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.layers,
            memory_layers=config.memory_layers,
            readout_channels=READOUT_CHANNELS if config.extra_readout else 1,
        ).to(torch.bfloat16)
        add_lora(transformer, LoraShape())
        codec = WanCodec(preset.codec).to(torch.bfloat16)
    return Denoiser(config, transformer).eval(), codec.eval()


def parameters(transformer: MemoryTransformer) -> dict[str, int]:
    """Of the public backbone, and of what an adapter adds to it."""
    sizes = {"backbone": 0, "branch": 0, "lora": 0}
    for name, parameter in transformer.named_parameters():
        part = "lora" if ".lora_" in name else "branch" if name.startswith(BRANCH) else "backbone"
        sizes[part] += parameter.numel()
    return sizes


def forward(
    denoiser: Denoiser,
    latent_size: tuple[int, int],
    targets: int,
    memory: bool,
    past: bool = True,
    kept: Kept | None = None,
) -> Count:
    """One pass of the denoiser: references, the overlap frame, the targets, preceding frames; a prompt."""
    config, transformer = denoiser.config, denoiser.transformer
    references, preceding = (config.references, config.preceding) if past else (0, 0)
    frames = references + 1 + targets + preceding
    bf16 = {"device": "meta", "dtype": torch.bfloat16}
    shown = frames - references
    return count(
        lambda: transformer(
            torch.empty(1, config.channels, frames, *latent_size, **bf16),
            torch.empty(1, frames, device="meta"),
            torch.empty(1, TEXT_TOKENS, config.text_dim, **bf16),
            readout=torch.empty(1, config.channels, shown, *latent_size, **bf16) if memory else None,
            readout_extra=torch.empty(1, 1, shown, *latent_size, **bf16) if memory else None,
            references=references,
            kept=kept,
        )
    )


def text_encoder() -> nn.Module:
    """UMT5-XXL's encoder, as Wan's checkpoints hold it."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        return UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        ).to(torch.bfloat16)


def masks(images: int) -> tuple[nn.Module, Count]:
    """SAM 3's picture encoder over some pictures; its phrases cost next to nothing beside it."""
    from transformers import Sam3Config, Sam3Model

    with torch.device("meta"):
        model = Sam3Model(Sam3Config()).to(torch.bfloat16).eval()
    side = model.config.vision_config.backbone_config.image_size
    picture = torch.empty(1, 3, side, side, device="meta", dtype=torch.bfloat16)
    one = count(lambda: model.get_vision_features(picture).last_hidden_state)
    return model, replace(one, flops=one.flops * images)


def depth(size: tuple[int, int], images: int, longer_side_px: int = 504) -> tuple[nn.Module, Count]:
    """Depth Anything 3 (base) over the views of a chunk, together, in float32."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from depth_anything_3.cfg import create_object, load_config
        from depth_anything_3.registry import MODEL_REGISTRY

        network = create_object(load_config(str(MODEL_REGISTRY["da3-base"]))).eval().to("meta")
    scale = longer_side_px / max(size)
    h, w = (round(side * scale / 14) * 14 for side in size)
    picture = torch.empty(1, images, 3, h, w, device="meta")
    with patch.object(Tensor, "__int__", lambda _: max(h, w) // 14):  # it asks its own positions how far they go
        return network, count(lambda: network(picture)["depth"])


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def main(
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the pictures.")] = "704x1280",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the preset's if not given.")] = None,
    targets: Annotated[int, typer.Option(help="New latent frames in a chunk.")] = 8,
) -> None:
    """Count a chunk of the full-size preset."""
    out, preset, pixels = Console(), load_config("wan2.2-ti2v-5b", Preset), parse_size(size)
    steps = steps or preset.sampler.steps
    denoiser, codec = build(preset)
    latent_size, frames = codec.latent_size(pixels), targets * codec.temporal_stride
    bf16 = {"device": "meta", "dtype": torch.bfloat16}

    sizes = parameters(denoiser.transformer)
    table = Table("part", "parameters", "GiB", title="Weights in bfloat16")
    keys = math.ceil(targets / preset.keyframe_stride)
    segmenter, segmented = masks(frames)
    parts = {name: number / 1e6 for name, number in sizes.items()}
    parts |= {"VAE": millions(codec.vae), "text encoder": millions(text_encoder()), "SAM 3": millions(segmenter)}
    for name, number in parts.items():
        table.add_row(name, f"{number:,.1f} M", f"{number * 2e6 / 2**30:.2f}")
    out.print(table)

    plain = forward(denoiser, latent_size, targets, memory=False)
    stock = forward(denoiser, latent_size, targets, memory=False, past=False)
    kept = Kept()
    first, full = (forward(denoiser, latent_size, targets, memory=True, kept=kept) for _ in range(2))
    decode = count(lambda: codec.decode(torch.empty(1, targets + 1, codec.channels, *latent_size, **bf16)))
    encode = count(lambda: codec.encode(torch.empty(keys, 3, *pixels, **bf16)))
    outside = {"decode": decode, "masks": segmented, "encode": encode}
    try:
        outside["depth"] = depth(pixels, frames)[1]
    except ImportError:
        out.print("depth is not counted: depth-anything-3 is not installed")
    passes = first.flops + (steps - 1) * full.flops
    chunk = passes + sum(part.flops for part in outside.values())
    table = Table(
        "part", "TFLOP", "of the chunk", "tensors at most", "output", title=f"One chunk, {steps} steps, counted"
    )
    rows = {f"denoise, {steps} passes": replace(full, flops=passes)} | outside
    for name, part in rows.items():
        table.add_row(
            name,
            f"{part.flops / 1e12:,.1f}",
            f"{part.flops / chunk:.1%}",
            f"{part.live_bytes / 2**30:.2f} GiB",
            " x ".join(map(str, part.output)),
        )
    out.print(table)
    out.print(
        f"the first pass: {first.flops / 1e12:.1f} TFLOP; the same frames without branch {plain.flops / 1e12:.1f}, "
        f"ratio {first.flops / plain.flops:.3f}; the chunk alone, without past frames, {stock.flops / 1e12:.1f}"
    )
    out.print(f"made once a chunk and kept: {(first.flops - full.flops) / 1e12:.2f} TFLOP, not made again every step")
    out.print(f"element-wise traffic of a pass, without compiling: {full.traffic_bytes / 1e9:,.0f} GB")
    out.print(f"outside the denoising loop: {1 - passes / chunk:.1%}")


if __name__ == "__main__":
    typer.run(main)
