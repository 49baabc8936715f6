"""Stage 2: depth, sky and moving things, from pictures as the codec will blur them and from what the memory knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mirage_env.codec.wan import to_float
from mirage_env.contact_sheet import colour_depth
from mirage_env.memory import ChunkRecord, splat
from mirage_env.memory.latent import LatentMemory, MemoryConfig
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception, mirror, perception_inputs
from mirage_env.precision import fast_autocast
from mirage_env.training.clips import DYNAMIC, SKY, ClipStore
from mirage_env.training.log import rows_of_pictures
from mirage_env.training.loop import Stage
from mirage_env.types import Cameras
from mirage_env.weights import save_weights


@dataclass(frozen=True)
class PerceptionLossConfig:
    batch: int = 8
    memory_share: float = 0.6
    """Share of pictures that come with a memory of another frame of their clip."""
    scale_noise: float = 0.05
    """Spread of the log scale by which that memory is wrong."""
    gradient_weight: float = 0.5
    aligned_weight: float = 0.0
    """Of the relative error that is left once a picture's depth is scaled by its median."""
    mask_weight: float = 1.0
    moving_share: float = 0.25
    """Share of pictures drawn among those in which something moves, which are few."""
    cell_px: int = 8
    """Size of a memory cell."""


Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Network inputs (B, 8, H, W), depth (B, H, W) in metres, sky and dynamic masks (B, H, W)."""


class PerceptionStage(Stage):
    """Trains on all clips but the last `held_out` of each store; those of the first store validate."""

    name = "perception"

    def __init__(
        self,
        config: PerceptionConfig,
        loss: PerceptionLossConfig,
        stores: list[ClipStore],
        held_out: int = 32,
        device: str = "cpu",
    ):
        self.model: TinyPerception = TinyPerception(config).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self.config, self.loss, self.stores, self.held_out, self.device = config, loss, stores, held_out, device
        self.memory = LatentMemory(MemoryConfig())
        self.moving = [_frames_with_movement(store, len(store) - held_out) for store in stores]

    def batch(self, generator: torch.Generator) -> Batch:
        rng = np.random.default_rng(generator.initial_seed())
        sizes = np.array([len(store) * store.config.frames for store in self.stores])
        which = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
        store, moving = self.stores[which], self.moving[which]
        clips = rng.integers(0, len(store) - self.held_out, self.loss.batch)
        frames, others = rng.integers(0, store.config.frames, (2, self.loss.batch))
        if len(moving):
            chosen = rng.random(self.loss.batch) < self.loss.moving_share
            clips[chosen], frames[chosen] = moving[rng.integers(0, len(moving), int(chosen.sum()))].T
        inputs, depth, sky, dynamic = self._pictures(store, clips, frames, others, rng)
        if rng.random() < 0.5:  # mirrored scenes are scenes, too
            return mirrored((inputs, depth, sky, dynamic))
        return inputs, depth, sky, dynamic

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return self.errors(batch, relative_share=0.5)

    def errors(self, batch: Batch, relative_share: float) -> dict[str, Tensor]:
        """The loss and its parts, where so much of depth's is the relative error and the rest that of the logarithm."""
        inputs, depth, sky, dynamic = batch
        log_depth, sky_logit, dynamic_logit, *log_doubt = self.model.logits(inputs).unbind(1)
        solid = ~sky
        error = (log_depth - depth.clamp_min(1e-2).log()) * solid
        relative = error.clamp(max=2.0).expm1()  # what it will be judged by: too far costs more than too near
        value = error.abs().mean().lerp(relative.abs().mean(), relative_share)
        loss = value
        if relative_share and self.loss.aligned_weight:
            middle = error.detach().where(solid, torch.nan).flatten(1).nanmedian(1).values.nan_to_num()
            aligned = ((error - middle[:, None, None]) * solid).clamp(max=2.0).expm1()
            loss = loss + self.loss.aligned_weight * aligned.abs().mean()
        gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        masks = F.binary_cross_entropy_with_logits(sky_logit, sky.float())
        masks = masks + F.binary_cross_entropy_with_logits(dynamic_logit, dynamic.float())
        loss = loss + self.loss.gradient_weight * gradient + self.loss.mask_weight * masks
        for doubt in log_doubt:  # a Laplace distribution's likelihood, which is largest where doubt is the mean error
            loss = loss + ((error.detach().abs() * (-doubt).exp() + doubt) * solid).mean()
        return {"loss": loss, "log_depth": value.detach(), "masks": masks.detach()}

    def validate(self) -> dict[str, float]:
        """Metric absolute relative error without memory or alignment, and intersection over union of the masks."""
        _, (inputs, depth, sky, dynamic) = self._unseen(self.held_out)
        with fast_autocast(self.device):
            logits = torch.cat([self.model.logits(x) for x in inputs.split(8)])
        log_depth, sky_logit, dynamic_logit = logits[:, :3].unbind(1)
        relative = ((log_depth.exp() - depth).abs() / depth.clamp_min(1e-2))[~sky]
        return {
            "abs_rel": float(relative.mean()),
            "sky_iou": iou(sky_logit > 0, sky),
            "dynamic_iou": iou(dynamic_logit > 0, dynamic),
        }

    def strip(self) -> UInt8[np.ndarray, "H W 3"]:
        """Pictures above their true depth above the predicted one, both coloured over the same range."""
        pictures, (inputs, depth, sky, _) = self._unseen(min(8, self.held_out))
        with fast_autocast(self.device):
            log_depth, sky_logit = self.model.logits(inputs)[:, :2].unbind(1)
        rows = [(depth, ~sky), (log_depth.float().exp(), sky_logit <= 0)]
        return rows_of_pictures(
            pictures, *(colour_depth(d.cpu().numpy(), valid.cpu().numpy(), (0.3, 10.0)) for d, valid in rows)
        )

    def _unseen(self, count: int) -> tuple[UInt8[np.ndarray, "n H W 3"], Batch]:
        """Pictures of clips that training never draws, one a clip, as they are and as the network gets them."""
        store = self.stores[0]
        clips = np.arange(len(store) - self.held_out, len(store))[:count]
        frames = np.random.default_rng(0).integers(0, store.config.frames, self.held_out)[:count]
        return store.array("rgb")[clips, frames], self._pictures(store, clips, frames, frames, None)

    def _pictures(
        self,
        store: ClipStore,
        clips: np.ndarray,
        frames: np.ndarray,
        others: np.ndarray,
        rng: np.random.Generator | None,
    ) -> Batch:
        """The given (clip, frame) pairs; memories, which frames `others` wrote, and blur only where there is `rng`."""
        images = to_float(torch.from_numpy(store.array("rgb")[clips, frames]))
        cameras = store.cameras(clips, frames)
        height, width = store.config.size
        known = torch.zeros(len(clips), height // self.loss.cell_px, width // self.loss.cell_px)
        if rng is not None:
            images = torch.stack([_weakened(image, rng) for image in images])
            for i in np.flatnonzero(rng.random(len(clips)) < self.loss.memory_share):
                scale = float(np.exp(self.loss.scale_noise * rng.standard_normal()))
                known[i] = scale * self._memory_depth(store, int(clips[i]), int(others[i]), cameras[i : i + 1])
        inputs = perception_inputs(images, cameras, known, 0.0)
        return inputs.to(self.device), *self.truth(store, clips, frames)

    def truth(self, store: ClipStore, clips: np.ndarray, frames: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Depth in metres and the masks of sky and of moving things, for (clip, frame) pairs."""
        depth = torch.from_numpy(store.array("depth")[clips, frames].astype(np.float32))
        masks = torch.from_numpy(store.array("masks")[clips, frames])
        return depth.to(self.device), ((masks & SKY) > 0).to(self.device), ((masks & DYNAMIC) > 0).to(self.device)

    def _memory_depth(self, store: ClipStore, clip: int, frame: int, camera: Cameras) -> Float[Tensor, "h w"]:
        """What a memory that frame `frame` alone wrote shows to `camera`."""
        source = store.cameras(np.array([clip]), np.array([frame]))
        depth = torch.from_numpy(store.array("depth")[clip, frame].astype(np.float32))[None]
        masks = torch.from_numpy(np.array(store.array("masks")[clip, frame]))[None]
        height, width = store.config.size
        grid = (height // self.loss.cell_px, width // self.loss.cell_px)
        nothing = torch.zeros(1, 1, *grid)
        record = ChunkRecord(nothing, depth, (masks & SKY) > 0, (masks & DYNAMIC) > 0, source)
        state = self.memory.write(self.memory.empty(1), record)
        return splat(state.points, state.tokens, state.ids, camera.resized(grid)).depth_m[0]

    def export(self, folder: Path, card: dict) -> None:
        save_weights(
            folder / f"{self.name}.safetensors", self.model, {"kind": "perception", "config": self.config, **card}
        )


def mirrored(batch: Batch) -> Batch:
    """The same scenes, left and right exchanged."""
    inputs, depth, sky, dynamic = batch
    return mirror(inputs), depth.flip(-1), sky.flip(-1), dynamic.flip(-1)


def _frames_with_movement(store: ClipStore, clips: int, pixels: int = 16) -> np.ndarray:
    """(K, 2): clip and frame of every picture of the first `clips` clips with so many pixels that move."""
    masks = store.array("masks")
    counts = [((masks[clip] & DYNAMIC) > 0).sum((1, 2)) for clip in range(clips)]
    return np.argwhere(np.array(counts).reshape(clips, -1) >= pixels)


def _weakened(image: Float[Tensor, "3 H W"], rng: np.random.Generator) -> Float[Tensor, "3 H W"]:
    """Blurred, dimmed, tinted and half of them in other hues: what is generated is softer than the simulator,
    photographs vary in light, and whoever knows colours by heart is lost among others."""
    tint = torch.from_numpy(rng.uniform(0.85, 1.15, (3, 1, 1)).astype(np.float32))
    if rng.random() < 0.5:
        image = torch.einsum("ij,jhw->ihw", _other_hues(rng.normal(0.0, 1.0), rng.uniform(0.2, 1.5)), image)
        image = rng.uniform(0.7, 1.3) * (image - image.mean()) + image.mean()
    image = (image * tint * rng.uniform(0.8, 1.15) + rng.uniform(-0.15, 0.15)).clamp(-1, 1)
    if rng.random() < 0.5:
        small = F.interpolate(image[None], scale_factor=rng.uniform(0.35, 0.9), mode="bilinear", antialias=True)
        image = F.interpolate(small, size=image.shape[1:], mode="bilinear")[0]
    return image


def _other_hues(angle: float, saturation: float) -> Float[Tensor, "3 3"]:
    """Turns colours about the axis of greys, and scales how far they lie from it."""
    grey = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    return grey + saturation * (math.cos(angle) * (torch.eye(3) - grey) + math.sin(angle) * across)


def iou(prediction: Bool[Tensor, "*b"], truth: Bool[Tensor, "*b"]) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0
