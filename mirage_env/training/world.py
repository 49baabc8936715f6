"""Stage 3: the denoiser, jointly with the memory, on chunks cut out of clips as a rollout would meet them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mirage_env.codec.wan import WanCodec, to_float, to_uint8
from mirage_env.denoise.denoiser import ChunkCondition, Denoiser, DenoiserConfig, make_condition
from mirage_env.denoise.sampler import SamplerConfig, sample
from mirage_env.errors import InvalidValueError
from mirage_env.memory.depth_grid import depth_to_grid
from mirage_env.memory.protocol import AnyMemoryConfig, ChunkRecord, Memory, PastFrames, make_memory
from mirage_env.memory.recall import recall
from mirage_env.training.clips import DYNAMIC, SKY, ClipStore
from mirage_env.training.codec import psnr
from mirage_env.training.latents import depth_name, latents_name, walked_name
from mirage_env.training.log import rows_of_pictures
from mirage_env.training.loop import Stage
from mirage_env.types import Cameras, Readout
from mirage_env.weights import save_weights

WorldStageName = Literal["refiner", "denoiser", "finetune"]


@dataclass(frozen=True)
class WorldLossConfig:
    batch: int = 8
    chunks: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of target frames, drawn evenly a batch."""
    keyframe_stride: int = 4
    predicted_depth: float = 0.7
    """Share of samples whose memory is written from predicted depth; the rest from true depth."""
    pure_noise: float = 0.3
    """Share of samples at sigma = 1, where few-step sampling spends most of its passes."""
    history_noise: float = 0.1
    """At most this much noise on tokens and clean frames, untold, as a rollout's own errors would put there."""
    walked: float = 0.5
    """Share of samples whose past is a walk of an earlier model, where the stores hold one; see `walk_clips`."""


@dataclass(frozen=True)
class _Rollout:
    """A clip, and what a rollout along it would know before its next chunk; frames count from the clip's first."""

    cameras: Cameras
    """Of every frame, at latent resolution."""
    latents: Float[Tensor, "t c h w"]
    """The truth."""
    history: Float[Tensor, "t c h w"]
    """The same as the rollout holds them, with its errors."""
    references: PastFrames
    """Past frames that saw what the targets will see, the best first."""
    readout: Readout
    """The memory as the overlap frame, the targets and the preceding frames see it."""
    context: Float[Tensor, "l d"] | None
    """What else it has to say."""


class WorldStage(Stage):
    """Trains on all clips of the stores but the last `held_out` of each, which validate."""

    model: Denoiser

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
    ):
        """Stage "refiner" trains that part alone. `start` is the model to go on from; `walked_by` is the hash of the
        one whose walks of the clips are learned from, too."""
        self.name, self.model = name, (start or Denoiser(config)).to(device)
        if name == "refiner":
            if self.model.refiner is None:
                raise InvalidValueError("this denoiser has no refiner to train; set refiner_width or skip the stage")
            self.model.transformer.requires_grad_(False)
        self.config, self.loss, self.stores, self.held_out, self.device = config, loss, stores, held_out, device
        self.codec, self.codec_hash = codec.eval(), codec_hash
        self.memory: Memory = make_memory(memory, codec.encode) if isinstance(memory, AnyMemoryConfig) else memory
        self.depth_name = depth_name(perception_hash)
        self.metric = pixel_metric(self.codec, torch.from_numpy(np.array(stores[0].array("rgb")[:8, 0]))).to(device)
        self.latents = [store.array(latents_name(codec_hash)) for store in stores]
        self.walks = None if walked_by is None else walked_name(walked_by)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of the denoiser, and those of the memory, which learns from the same loss."""
        if not isinstance(self.memory, nn.Module):
            return super().parameters()
        of_memory = {f"memory.{n}": p for n, p in self.memory.named_parameters() if p.requires_grad}
        return super().parameters() | of_memory

    def batch(self, generator: torch.Generator) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"]]:
        rng = np.random.default_rng(generator.initial_seed())
        shares = np.array([len(store) * store.config.frames for store in self.stores], dtype=float)
        which = int(rng.choice(len(self.stores), p=shares / shares.sum()))
        n = int(rng.choice(self.loss.chunks))
        overlap = int(rng.integers(0, self.stores[which].config.frames - n))
        clips = rng.integers(0, len(self.stores[which]) - self.held_out, self.loss.batch)
        return self.chunks(which, clips, overlap, n, rng)

    def losses(
        self, batch: tuple[ChunkCondition, Float[Tensor, "b n c h w"]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        condition, clean = batch
        warp_error = self.weighed(condition.base - clean).mean()
        condition = self.model.refined(condition)
        refined_error = self.weighed(condition.base - clean).mean()
        if self.name == "refiner":
            return {"loss": refined_error, "warp_error": warp_error}
        sigma = torch.sigmoid(torch.randn(len(clean), generator=generator, device=self.device))
        pure = torch.rand(len(clean), generator=generator, device=self.device) < self.loss.pure_noise
        sigma = torch.where(pure, 1.0, sigma)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        level = sigma[:, None, None, None, None]
        prediction = self.model.clean((1 - level) * clean + level * noise, sigma, condition)
        error = self.weighed(prediction - clean)
        return {
            # not over sigma^2: few-step sampling lives at high noise
            "loss": error.mean() + (0.5 * refined_error if self.model.refiner is not None else 0.0),
            "clean_error": error[pure].mean().detach() if bool(pure.any()) else error.mean().detach(),
            "refined_error": refined_error.detach(),
            "warp_error": warp_error,
        }

    def chunks(
        self, which: int, clips: np.ndarray, overlap: int, n: int, rng: np.random.Generator | None
    ) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"]]:
        """Condition and clean latents of the n frames after frame `overlap`; no noise and no choice without `rng`."""
        worlds = [self._world(which, int(clip), overlap, n, rng) for clip in clips]
        count = min(len(world.references.latents) for world in worlds)
        past, coming = slice(max(0, overlap - self.config.preceding), overlap + 1), slice(overlap + 1, overlap + 1 + n)
        conditions = []
        for world in worlds:
            references = world.references[:count]
            conditions.append(
                make_condition(
                    world.readout,
                    world.cameras[coming],
                    world.history[past],
                    world.cameras[past],
                    references.latents,
                    references.cameras,
                    world.context,
                )
            )
        targets = torch.stack([world.latents[coming] for world in worlds])
        return ChunkCondition.cat(conditions).to(self.device), targets.to(self.device)

    def _world(self, which: int, clip: int, overlap: int, n: int, rng: np.random.Generator | None) -> _Rollout:
        """The clip as a rollout that has come to frame `overlap` meets it."""
        store = self.stores[which]
        walk = None
        if self.walks is not None and rng is not None and rng.random() < self.loss.walked:
            walk, walk_depth = store.array(self.walks), store.array(f"{self.walks}-depth")
            clip %= len(walk)
        latents = torch.from_numpy(self.latents[which][clip].astype(np.float32))
        predicted = rng is None or rng.random() < self.loss.predicted_depth
        seen = walk_depth if walk is not None else store.array(self.depth_name if predicted else "depth")
        depth = torch.from_numpy(seen[clip, : overlap + 1].astype(np.float32))
        masks = torch.from_numpy(np.array(store.array("masks")[clip, : overlap + 1]))
        cameras = store.cameras(np.full(store.config.frames, clip), np.arange(store.config.frames))
        h, w = latents.shape[2:]
        grid_cameras = cameras.resized((h, w))

        history = latents if walk is None else torch.from_numpy(walk[clip].astype(np.float32))
        if rng is not None:
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
            history = history + float(rng.uniform(0, self.loss.history_noise)) * noise
        keys = torch.tensor(sorted({0, *range(overlap, -1, -self.loss.keyframe_stride)}))
        if rng is not None and rng.random() < 0.3:  # worlds that have seen little
            keys = keys[-1:]
        rgb = torch.from_numpy(np.array(store.array("rgb")[clip, : overlap + 1]))[keys]
        sky, dynamic = (masks & SKY) > 0, (masks & DYNAMIC) > 0
        record = ChunkRecord(history[keys], depth[keys], sky[keys], dynamic[keys], cameras[keys], rgb)
        state = self.memory.write(self.memory.empty(latents.shape[1]), record)
        views = torch.cat(
            [torch.arange(overlap, overlap + 1 + n), torch.arange(max(0, overlap - self.config.preceding), overlap)]
        )
        reading = self.memory.read(state, grid_cameras[views])
        readout = reading.grid or Readout.blank(grid_cameras[views], latents.shape[1])
        count = self.config.references if rng is None else int(rng.integers(0, self.config.references + 1))
        if reading.frames is None:
            past = keys[:-1]
            grid = depth_to_grid(depth[past], masks[past] == 0, (h, w))
            chosen = past[recall(grid, grid_cameras[past], grid_cameras[overlap + 1 : overlap + 1 + n], count)]
            references = PastFrames(history[chosen], grid_cameras[chosen])
        else:
            references = reading.frames[:count]
        return _Rollout(grid_cameras, latents, history, references, readout, reading.tokens)

    def weighed(self, error: Float[Tensor, "b n c h w"]) -> Float[Tensor, " b"]:
        """Mean square error as pixels will show it: e^T G e over the channels of a cell, see `pixel_metric`."""
        return torch.einsum("bnchw,cd,bndhw->bnhw", error, self.metric, error).flatten(1).mean(1)

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
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
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
        save_weights(folder / f"{self.name}.safetensors", self.model, card)
        if isinstance(self.memory, nn.Module):
            save_weights(
                folder / "memory.safetensors", self.memory, card | {"kind": "memory", "config": self.memory.config}
            )


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
