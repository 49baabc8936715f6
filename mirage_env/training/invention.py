"""The denoiser learns to invent: where the memory shows nothing, a critic judges what it makes up.

Least squares alone teach a denoiser to answer with the mean of all that could be there, which decodes to fog, and fog
that is written into the memory stays fog. Here squares count in full only where the memory shows something; and a
critic of latents, shown a frame beside the frame before it and what the memory had of it, pays for being believed.

What was made up once is true from then on. So some batches walk back over what the denoiser has just made up, and it
learns to leave that as the memory shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mirage_env.codec.wan import to_float, to_uint8
from mirage_env.denoise.denoiser import RAY_CHANNELS, ChunkCondition
from mirage_env.denoise.sampler import SamplerConfig, sample
from mirage_env.errors import InvalidValueError
from mirage_env.precision import fast_autocast
from mirage_env.training.chunks import Clip
from mirage_env.training.latents import latents_name
from mirage_env.training.world import WorldLossConfig, WorldStage

COARSE_CELLS = 4
"""Cells a side over which the coarse error is averaged."""


@dataclass(frozen=True)
class InventionLossConfig(WorldLossConfig):
    invented_weight: float = 0.1
    """Of the squared error in cells that the memory does not show; it is 1 in the others."""
    coarse_weight: float = 0.3
    """Of the squared error of what `COARSE_CELLS` x `COARSE_CELLS` invented cells show on average: hues must not drift
    from chunk to chunk."""
    critic_share: float = 1.5
    """How hard the critic pulls at the latents, in units of the pull of the squared errors ..."""
    critic_first: int = 200
    """... after so many steps, in which it learns its trade; its pull grows evenly until then."""
    seen_share: float = 0.3
    """How much of the critic's pull reaches the cells that the memory shows."""
    feature_weight: float = 0.1
    """Of the distance between the critic's features of what is made up and of the truth, beside its judgement."""
    swing: float = 0.3
    """How far the past of half of the samples is off in contrast (standard deviation of its logarithm) and hue (share
    of the way to another sample's), as a long walk over what was made up will be; invented cells have to come halfway
    back, or errors would add up from chunk to chunk."""
    returns: float = 0.0
    """Share of batches that walk back over frames of the denoiser's own: it learns to leave remembered cells as they
    are, whether true or made up. Nothing else counts in them. Of a memory that knows cells for certain it has nothing
    to learn there."""
    critic_width: int = 96
    critic_steps: int = 3
    """Steps of the critic for one of the denoiser's: it is small, and a critic that lags behind teaches nothing."""
    critic_rate: float = 3e-4
    """Its learning rate."""

    def __post_init__(self) -> None:
        if min(self.critic_width, self.critic_steps) < 1:
            raise InvalidValueError(
                f"critic_width and critic_steps must be positive, got {self.critic_width} and {self.critic_steps}"
            )
        names = (
            "invented_weight",
            "coarse_weight",
            "critic_share",
            "critic_first",
            "seen_share",
            "feature_weight",
            "swing",
            "returns",
        )
        for name in names:
            if getattr(self, name) < 0:
                raise InvalidValueError(f"{name} must not be negative, got {getattr(self, name)}")


class UnitConv(nn.Conv2d):
    """A convolution whose filters have length 1, which bounds how steep the critic can be."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-6)
        return F.leaky_relu(F.conv2d(x, weight, self.bias, self.stride, self.padding), 0.2) * 2**0.5


class LatentCritic(nn.Module):
    """How true patches of three sizes look, from a few cells to most of a small frame; also gives what it looked at."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        widths = (width, 2 * width, 2 * width)
        shown = 3 * channels + 1 + RAY_CHANNELS
        self.scales = nn.ModuleList()
        for before, after, stride in zip((shown, *widths), widths, (1, 2, 2), strict=False):
            first = UnitConv(before, after, 2 + stride, stride, 1)
            self.scales.append(nn.Sequential(first, UnitConv(after, after, 3, 1, 1)))
        self.heads = nn.ModuleList(nn.Conv2d(k, 1, 1) for k in widths)

    def forward(self, shown: Float[Tensor, "n k h w"]) -> tuple[list[Tensor], list[Tensor]]:
        scores, features, x = [], [], shown
        for scale, head in zip(self.scales, self.heads, strict=True):
            x = scale(x)
            features.append(x.float())
            scores.append(head(x).float())
        return scores, features


class InventionStage(WorldStage):
    """Goes on from a denoiser, for samplers of one step: at sigma = 1 alone.

    The critic has an optimizer of its own; of several processes every one has a critic of its own.
    """

    loss: InventionLossConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.critic = LatentCritic(self.config.channels, self.loss.critic_width).to(self.device)
        self._optimizer = torch.optim.AdamW(self.critic.parameters(), self.loss.critic_rate, betas=(0.5, 0.99))
        values, vectors = torch.linalg.eigh(self.metric.double().cpu())
        root = vectors * values.clamp_min(0).sqrt()
        latents = self.stores[0].array(latents_name(str(self.codec_hash)))[:64, 0]
        spread = torch.einsum("nchw,cd->ndhw", torch.from_numpy(latents.astype(np.float64)), root)
        self._root = (root / spread.square().mean().sqrt()).float().to(self.device)

    def extra_state(self) -> dict[str, Tensor]:
        """The critic, and its optimizer's state."""
        state = {f"critic.{name}": p.detach() for name, p in self.critic.named_parameters()}
        for index, values in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        own, values = self._optimizer.state_dict(), dict[int, dict[str, Tensor]]()
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "critic":
                self.critic.get_parameter(rest).data.copy_(value)
            else:
                index, _, key = rest.partition(".")
                values.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**own, "state": values})

    def batch(  # type: ignore[override]
        self, generator: torch.Generator
    ) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"], bool]:
        """Also whether it walks back."""
        rng = np.random.default_rng(generator.initial_seed())
        which, clips, overlap, n = self.draw(rng)
        if n > 1 and rng.random() < self.loss.returns:
            return *self._way_back(which, clips, overlap, n, rng), True
        return *self.chunks(which, clips, overlap, n, rng), False

    @torch.no_grad()
    def _way_back(
        self, which: int, indices: np.ndarray, overlap: int, n: int, rng: np.random.Generator | None
    ) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"]]:
        """The chunk that leads back over the n frames after frame `overlap`, which the denoiser has just made."""
        source = self.sources[which]
        clips = [source.clip(int(index), rng) for index in indices]
        condition, clean = self.chunks_of(clips, source.key_stride, overlap, n, rng)
        noise = (np.random.default_rng(0) if rng is None else rng).standard_normal(clean.shape, dtype=np.float32)
        with fast_autocast(self.device):
            made = sample(self.model, condition, torch.from_numpy(noise).to(self.device), SamplerConfig(1))
            pictures = self.codec.to(self.device).decode(made.float()).clamp(-1, 1)
            made = self.codec.encode(pictures.flatten(0, 1)).unflatten(0, clean.shape[:2])
        walks = [
            _there_and_back(clip, overlap, latents, to_uint8(images).numpy())
            for clip, latents, images in zip(clips, made.float().cpu(), pictures.float().cpu(), strict=True)
        ]
        return self.chunks_of(walks, source.key_stride, overlap + n, n - 1, rng)

    def losses(  # type: ignore[override]
        self, batch: tuple[ChunkCondition, Float[Tensor, "b n c h w"], bool], generator: torch.Generator
    ) -> dict[str, Tensor]:
        condition, clean, back = batch
        return self._kept(condition, clean, generator) if back else self._invented(condition, clean, generator)

    def _kept(
        self, warped: ChunkCondition, before: Float[Tensor, "b n c h w"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """How far remembered cells are from what they were before."""
        condition = self.model.refined(warped)
        noise = torch.randn(before.shape, generator=generator, device=self.device)
        made = self.denoised(condition, before, noise, torch.ones(len(before), device=self.device))
        error, refined_error = (self.weighed((x - before) * warped.seen).mean() for x in (made, condition.base))
        return {
            "loss": error + 0.5 * refined_error,
            "kept_error": error.detach(),
            "kept_error_refined": refined_error.detach(),
        }

    def _invented(
        self, warped: ChunkCondition, clean: Float[Tensor, "b n c h w"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        warped, clean = self._swung(warped, clean, generator)
        condition, loss, seen = self.model.refined(warped), self.loss, warped.known
        refined_error = self.weighed(condition.base - clean).mean()
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        made = self.denoised(condition, clean, noise, torch.ones(len(clean), device=self.device))
        off = made - clean
        coarse = F.avg_pool2d((off * ~seen).flatten(0, 1), COARSE_CELLS).unflatten(0, off.shape[:2])
        error = self.weighed(torch.where(seen, 1.0, loss.invented_weight**0.5) * off).mean()
        error = error + loss.coarse_weight * self.weighed(coarse).mean()

        truth = self._shown(warped, clean)
        judgement = self._teach(truth, self._shown(warped, made.detach()))
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        pulled = torch.where(seen, made.detach() + loss.seen_share * (made - made.detach()), made)
        believed, features = functional_call(self.critic, frozen, (self._shown(warped, pulled),))
        with torch.no_grad():
            _, expected = self.critic(truth)
        apart = torch.stack([(a - b).abs().mean() / b.abs().mean() for a, b in zip(features, expected, strict=True)])
        praise = torch.stack([x.mean() for x in believed]).sum() - loss.feature_weight * apart.mean()
        pulls = [torch.autograd.grad(x, made, retain_graph=True)[0].norm() for x in (error, praise)]
        share = loss.critic_share * min(1.0, self._taught / max(1, loss.critic_first))
        praise = share * (pulls[0] / pulls[1].clamp_min(1e-12)).detach() * praise
        return {
            "loss": error - praise + 0.5 * refined_error,
            "error": error.detach(),
            "apart": apart.mean().detach(),
            "judgement": judgement,
            "refined_error": refined_error.detach(),
        }

    def _swung(
        self, condition: ChunkCondition, clean: Float[Tensor, "b n c h w"], generator: torch.Generator
    ) -> tuple[ChunkCondition, Float[Tensor, "b n c h w"]]:
        """The batch with the past of some samples off in contrast and hue; see `InventionLossConfig.swing`."""
        draws = torch.randn(3, len(clean), 1, 1, 1, 1, generator=generator, device=self.device)
        some = self.loss.swing * (draws[0] > 0)
        mean = clean.mean((1, 3, 4), keepdim=True)
        gain, shift = some * draws[1], some * draws[2] * (mean.roll(1, 0) - mean)

        def off(x: Tensor, share: float) -> Tensor:
            return mean + (share * gain).exp() * (x - mean) + share * shift

        shown = condition.readout_extra[:, :, :1] > 0
        readout = torch.where(shown, off(condition.readout, 1.0), condition.readout)
        target = torch.where(condition.known, off(clean, 1.0), off(clean, 0.5))
        settled = condition.settled
        if settled is not None:
            known = settled[:, :, :1]
            settled = torch.cat([known, torch.where(known > 0, off(settled[:, :, 1:], 1.0), 0.0)], 2)
        return replace(condition, clean=off(condition.clean, 1.0), readout=readout, settled=settled), target

    @property
    def _taught(self) -> float:
        """How many of the denoiser's steps the critic has seen."""
        first = next(iter(self._optimizer.state.values()), None)
        return 0.0 if first is None else float(first["step"]) / self.loss.critic_steps

    def _teach(self, truth: Float[Tensor, "m k h w"], made: Float[Tensor, "m k h w"]) -> Tensor:
        """A few steps of the critic; returns the hinge loss of the last, which begins at 6."""
        for _ in range(self.loss.critic_steps):
            (on_truth, _), (on_made, _) = self.critic(truth), self.critic(made)
            hinges = [F.relu(1 - t).mean() + F.relu(1 + m).mean() for t, m in zip(on_truth, on_made, strict=True)]
            judgement = torch.stack(hinges).sum()
            judgement.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        return judgement.detach()

    def _shown(self, condition: ChunkCondition, latents: Float[Tensor, "b n c h w"]) -> Float[Tensor, "m k h w"]:
        """What the critic is shown of every target frame: itself, the frame before, what the memory had of it, and
        the rays; latents in directions of variance 1 that are weighed as pixels show them."""
        before = torch.cat([condition.clean[:, condition.references, None], latents[:, :-1]], 1)
        memory = condition.readout[:, condition.noisy[condition.references :]] * condition.seen
        parts = [torch.einsum("bnchw,cd->bndhw", x.float(), self._root) for x in (latents, before, memory)]
        rays = condition.rays[:, condition.noisy].float()
        return torch.cat([*parts, condition.seen.float(), rays], 2).flatten(0, 1)

    def validate(self) -> dict[str, float]:
        """Also how much detail the invented cells have, over the truth's, and the PSNR in dB, on the way back over
        generated frames, of the cells that are remembered against what they were."""
        return super().validate() | {"detail_invented": self._detail_invented(16), "psnr_kept": self._psnr_kept(16)}

    def _psnr_kept(self, count: int) -> float:
        store, cell = self.stores[0], self.codec.spatial_stride
        clips = np.arange(len(store) - self.held_out, len(store))[:count]
        condition, before = self._way_back(0, clips, 0, min(8, store.config.frames - 1), None)
        with fast_autocast(self.device):
            made = sample(self.model, condition, torch.zeros_like(before), SamplerConfig(1))
            off = (self.codec.decode(made.float()) - self.codec.decode(before)).float().cpu()
        kept = condition.seen.repeat_interleave(cell, -2).repeat_interleave(cell, -1).cpu()
        error = (off.square() * kept).sum() / (3 * kept.sum()).clamp_min(1)
        return float(10 * torch.log10(4 / error.clamp_min(1e-10)))

    def _detail_invented(self, count: int) -> float:
        store, cell = self.stores[0], self.codec.spatial_stride
        clips = np.arange(len(store) - self.held_out, len(store))[:count]
        n = min(8, store.config.frames - 1)
        condition, clean = self.chunks(0, clips, 0, n, None)
        with fast_autocast(self.device):
            made = sample(self.model, condition, torch.zeros_like(clean), SamplerConfig(1))
            pictures = torch.stack([self.codec.decode(x[None])[0] for x in made.float()]).float().cpu()
        truth = to_float(torch.from_numpy(store.array("rgb")[clips, 1 : 1 + n]))
        invented = ~condition.known.repeat_interleave(cell, -2).repeat_interleave(cell, -1).cpu()
        return _detail(pictures, invented) / max(_detail(truth, invented), 1e-12)  # where nothing is invented: 0


def _there_and_back(
    clip: Clip, overlap: int, made: Float[Tensor, "n c h w"], pictures: UInt8[np.ndarray, "n H W 3"]
) -> Clip:
    """The clip up to frame `overlap`, what was made after it, and the same frames backwards."""
    before, there = overlap + 1, overlap + 1 + len(made)
    order = np.r_[:there, there - 2 : overlap : -1]
    latents = torch.cat([clip.held[:before], made])[order]
    rgb = np.concatenate([clip.rgb[:before], pictures])[order]
    cameras = clip.cameras[torch.from_numpy(order)]
    return Clip(cameras, latents, latents, clip.depth_m[order], clip.masks[order], rgb, clip.text)


def _detail(images: Float[Tensor, "b n 3 H W"], where: Bool[Tensor, "b n 1 H W"]) -> float:
    """Mean square difference of neighbouring pixels, both of them where asked for."""
    total = 0.0
    for dim in (-1, -2):
        both = where.narrow(dim, 1, where.shape[dim] - 1) & where.narrow(dim, 0, where.shape[dim] - 1)
        total += float((images.diff(dim=dim).square() * both).sum() / both.sum().clamp_min(1))
    return total
