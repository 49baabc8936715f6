"""Stage 3: the denoiser of the embedded preset on the simulator's clips: jointly with the memory, or in two stages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mirage_env.codec.wan import WanCodec, to_float, to_uint8
from mirage_env.denoise.denoiser import ChunkCondition, Denoiser, DenoiserConfig
from mirage_env.denoise.pretrained import LoraShape, freeze_backbone
from mirage_env.denoise.sampler import SamplerConfig, sample
from mirage_env.denoise.transformer import BRANCH
from mirage_env.errors import InvalidValueError
from mirage_env.memory.protocol import AnyMemoryConfig, Memory, make_memory
from mirage_env.precision import fast_autocast
from mirage_env.training.chunks import ChunkConfig, ChunkStage, Clip
from mirage_env.training.clips import ClipStore
from mirage_env.training.codec import psnr
from mirage_env.training.latents import depth_name, latents_name, walked_name
from mirage_env.training.log import rows_of_pictures
from mirage_env.weights import save_weights

WorldStageName = Literal["refiner", "denoiser", "finetune", "backbone", "branch", "lora", "invention"]


@dataclass(frozen=True)
class WorldLossConfig(ChunkConfig):
    predicted_depth: float = 0.7
    """Share of samples whose memory is written from predicted depth; the rest from true depth."""
    pure_noise: float = 0.3
    """Share of samples at sigma = 1, where few-step sampling spends most of its passes."""
    told_noise: float = 0.0
    """At most this noise level on the clean frames, told through their timestep; `history_noise` is not told."""
    walked: float = 0.5
    """Share of samples whose past is a walk of an earlier model, where the stores hold one; see `walk_clips`."""
    strides: tuple[int, ...] = (1,)
    """Every clip is met once for each, with only every so many-th frame: an agent's steps are longer than a film's. A
    batch draws among them by the frames that are left."""


class SimulatorClips:
    """Implements `ClipSource` over a store: true depth or predicted, the truth or a walk of an earlier model."""

    key_stride = 1

    def __init__(
        self,
        store: ClipStore,
        loss: WorldLossConfig,
        codec_hash: str,
        perception_hash: str,
        walked_by: str | None,
        stride: int = 1,
    ):
        self.store, self.loss, self.moments = store, loss, slice(None, None, stride)
        self.frames = -(-store.config.frames // max(1, stride))
        if stride < 1 or self.frames < 2:
            raise InvalidValueError(
                f"strides must be at least 1 and leave two frames of {store.config.frames}, got {stride}"
            )
        self.latents, self.depth_name = store.array(latents_name(codec_hash)), depth_name(perception_hash)
        self.walks = None if walked_by is None else walked_name(walked_by)

    def __len__(self) -> int:
        return len(self.store)

    def overlaps(self, targets: int) -> Sequence[int]:
        return range(self.frames - targets)

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        store, walk = self.store, None
        if self.walks is not None and rng is not None and rng.random() < self.loss.walked:
            walk, walk_depth = store.array(self.walks), store.array(f"{self.walks}-depth")
            index %= len(walk)
        moments = self.moments
        latents = torch.from_numpy(self.latents[index, moments].astype(np.float32))
        predicted = rng is None or rng.random() < self.loss.predicted_depth
        depth = walk_depth if walk is not None else store.array(self.depth_name if predicted else "depth")
        return Clip(
            store.cameras(np.full(self.frames, index), np.arange(store.config.frames)[moments]),
            latents,
            latents if walk is None else torch.from_numpy(walk[index, moments].astype(np.float32)),
            depth[index, moments],
            store.array("masks")[index, moments],
            store.array("rgb")[index, moments],
        )


def simulator_clips(
    stores: Sequence[ClipStore], loss: WorldLossConfig, codec_hash: str, perception_hash: str, walked_by: str | None
) -> list[SimulatorClips]:
    """Every store once for each of the strides."""
    return [
        SimulatorClips(store, loss, codec_hash, perception_hash, walked_by, stride)
        for store in stores
        for stride in loss.strides
    ]


class WorldStage(ChunkStage):
    """Trains on all clips of the stores but the last `held_out` of each, which validate."""

    loss: WorldLossConfig

    def __init__(
        self,
        config: DenoiserConfig,
        loss: WorldLossConfig,
        memory: AnyMemoryConfig | Memory,
        stores: list[ClipStore],
        codec: WanCodec,
        codec_hash: str,
        perception_hash: str,
        held_out: int = 32,
        device: str = "cpu",
        name: WorldStageName = "denoiser",
        start: Denoiser | None = None,
        walked_by: str | None = None,
        lora: LoraShape | None = None,
    ):
        """Stage "refiner" trains that part alone. `start` is the model to go on from; `walked_by` is the hash of the
        one whose walks of the clips are learned from, too.

        The paper's stages: "backbone" stands for its pretrained one, which knows no memory and no camera; "branch"
        trains a branch that begins as copies of the frozen backbone's blocks, and the refiner; "lora" fresh LoRA with
        both. What is exported has LoRA merged into the weights that it changes."""
        sources = simulator_clips(stores, loss, codec_hash, perception_hash, walked_by)
        given: Memory = make_memory(memory, codec.encode) if isinstance(memory, AnyMemoryConfig) else memory
        super().__init__(start or Denoiser(config), loss, given, sources, held_out, device)
        self.name, self.stores = name, stores
        if name == "refiner":
            if self.model.refiner is None:
                raise InvalidValueError("this denoiser has no refiner to train; set refiner_width or skip the stage")
            self.model.transformer.requires_grad_(False)
        elif name == "backbone":
            for part, parameter in self.model.named_parameters():
                parameter.requires_grad_(not part.startswith(("refiner.", *(f"transformer.{x}" for x in BRANCH))))
        elif name in ("branch", "lora"):
            if name == "branch":
                self.model.transformer.restart_branch()
            freeze_backbone(self.model.transformer, lora)
        self.codec, self.codec_hash = codec.eval(), codec_hash
        self.metric = pixel_metric(self.codec, torch.from_numpy(np.array(stores[0].array("rgb")[:8, 0]))).to(device)

    def losses(
        self, batch: tuple[ChunkCondition, Float[Tensor, "b n c h w"]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        condition, clean = batch
        if self.name == "backbone":
            condition = replace(condition, memory_scale=0.0)
        warp_error = self.weighed(condition.base - clean).mean()
        condition = self.model.refined(condition)
        refined_error = self.weighed(condition.base - clean).mean()
        if self.name == "refiner":
            return {"loss": refined_error, "warp_error": warp_error}
        if self.loss.told_noise:
            past = self.loss.told_noise * torch.rand(len(clean), generator=generator, device=self.device)
            frames = torch.randn(condition.clean.shape, generator=generator, device=self.device)
            condition = condition.with_noise(past, frames)
        sigma = torch.sigmoid(torch.randn(len(clean), generator=generator, device=self.device))
        pure = torch.rand(len(clean), generator=generator, device=self.device) < self.loss.pure_noise
        sigma = torch.where(pure, 1.0, sigma)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        error = self.weighed(self.denoised(condition, clean, noise, sigma) - clean)
        return {
            # not over sigma^2: few-step sampling lives at high noise
            "loss": error.mean() + (0.5 * refined_error if self.model.refiner is not None else 0.0),
            "clean_error": error[pure].mean().detach() if bool(pure.any()) else error.mean().detach(),
            "refined_error": refined_error.detach(),
            "warp_error": warp_error,
        }

    def weighed(self, error: Float[Tensor, "b n c h w"]) -> Float[Tensor, " b"]:
        """Mean square error as pixels will show it: e^T G e over the channels of a cell, see `pixel_metric`."""
        return pixel_error(error, self.metric).flatten(1).mean(1)

    def validate(self) -> dict[str, float]:
        """PSNR in dB of 8-frame chunks that follow a clip's first frame, decoded, against the true pictures."""
        truth, answers = self._answers(16)
        result = {
            f"psnr_{name}": float(psnr(images.flatten(0, 1), to_float(truth).flatten(0, 1)).mean())
            for name, images in answers.items()
        }
        gap = max(result["psnr_codec"] - result["psnr_warp"], 1e-3)  # a perfect warp leaves no gap to divide by
        result["gap_closed"] = (result["psnr_steps1"] - result["psnr_warp"]) / gap
        return result

    def strip(self) -> UInt8[np.ndarray, "H W 3"]:
        """One chunk: the truth, the warp, the warp refined, and the model."""
        truth, answers = self._answers(1)
        names = ("warp", "refined", "steps1")
        return rows_of_pictures(truth[0].numpy(), *(to_uint8(answers[name][0]).numpy() for name in names))

    def _answers(self, count: int) -> tuple[UInt8[Tensor, "b n H W 3"], dict[str, Float[Tensor, "b n 3 H W"]]]:
        """The true pictures of chunks that training never draws, and what the model and its rivals make of them."""
        store = self.stores[0]
        clips = np.arange(len(store) - self.held_out, len(store))[:count]
        n = min(8, store.config.frames - 1)
        condition, clean = self.chunks(0, clips, 0, n, None)
        if self.name == "backbone":
            condition = replace(condition, memory_scale=0.0)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        with fast_autocast(self.device):
            latents = {
                "codec": clean,
                "warp": condition.base,
                "refined": self.model.refined(condition).base,
                "repeat": condition.clean[:, condition.references, None].expand_as(clean),
                "steps1": sample(self.model, condition, noise, SamplerConfig(1)),
                "steps2": sample(self.model, condition, noise, SamplerConfig(2)),
            }
            self.codec.to(self.device)
            images = {
                name: torch.stack([self.codec.decode(x[None])[0] for x in z.to(self.device).float()]).float().cpu()
                for name, z in latents.items()
            }
        return torch.from_numpy(store.array("rgb")[clips, 1 : 1 + n]), images

    def export(self, folder: Path, card: dict) -> None:
        card = {"kind": "denoiser", "config": self.config, "codec_hash": self.codec_hash, **card}
        save_weights(folder / f"{self.name}.safetensors", merged_lora(self.model), card)
        if isinstance(self.memory, nn.Module) and any(p.requires_grad for p in self.memory.parameters()):
            save_weights(
                folder / "memory.safetensors", self.memory, card | {"kind": "memory", "config": self.memory.config}
            )


def merged_lora(denoiser: Denoiser) -> Denoiser:
    """The denoiser with its LoRA, where it has any, added to the weights."""
    if not any(".lora_" in name for name, _ in denoiser.named_parameters()):
        return denoiser
    plain = copy.deepcopy(denoiser)
    plain.transformer.fuse_lora()
    plain.transformer.unload_lora()
    return plain


def pixel_error(error: Float[Tensor, "*b c h w"], metric: Float[Tensor, "c c"]) -> Float[Tensor, "*b h w"]:
    """e^T G e of every cell, in full precision: rounded to bfloat16, G has directions in which it is negative."""
    with torch.autocast(error.device.type, enabled=False):
        error = error.float()
        return torch.einsum("...chw,cd,...dhw->...hw", error, metric, error)


@torch.no_grad()
def pixel_metric(codec: WanCodec, rgb: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, "c c"]:
    """G = E[J^T J]: how much an error in one cell's channels changes the decoded picture, scaled to trace 1.

    Latent channels overlap and differ in what they do, so that plain squares would spend most effort on what nobody
    sees. Measured on every fourth cell at once, too far apart to meet.
    """
    latents = codec.encode(to_float(rgb))
    cells = torch.zeros_like(latents[:, 0])
    cells[:, ::4, ::4] = 0.5
    plain = codec.decode(latents[:, None])
    changes = []
    for channel in range(codec.channels):
        moved = latents.clone()
        moved[:, channel] += cells
        changes.append((codec.decode(moved[:, None]) - plain).flatten())
    stacked = torch.stack(changes)
    metric = stacked @ stacked.T
    return metric / metric.trace()
