"""The memory-conditioned video transformer: diffusers' `WanTransformer3DModel` with a side branch for the readout.

One forward pass holds clean reference frames, the chunk (one clean overlap frame, then noisy targets) and clean
preceding frames, in this order. Rotary positions tell the segments apart, timestep 0 tells the clean ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from jaxtyping import Float, Int
from torch import Tensor, nn

from mirage_env.errors import InvalidValueError

BRANCH = ("memory_blocks.", "readout_embedding.", "ray_embedding.")
"""Beginnings of the names of all that is ours and not the backbone's."""

Rotary = tuple[Float[Tensor, "1 l 1 d"], Float[Tensor, "1 l 1 d"]]
Words = tuple[Tensor, ...]
"""The prompt as a block reads it: keys and values; or, of a prompt of one token, the block's answer to any query."""


@dataclass
class Kept:
    """What stays the same from one denoising step of a chunk to the next: the first pass fills it, the others read."""

    rotary: Rotary | None = None
    rays: Float[Tensor, "b c f h w"] | None = None
    text: Float[Tensor, "b k c"] | None = None
    branch: Float[Tensor, "b l c"] | None = None
    """The readout's tokens, before the branch."""
    words: dict[str, Words] = field(default_factory=dict)
    """Of every block, by its name."""


class FrameBlock(WanTransformerBlock):
    """The backbone's block with one modulation a frame instead of one a token: the same numbers, far less traffic."""

    def forward(
        self,
        tokens: Float[Tensor, "b l c"],
        text: Float[Tensor, "b k c"] | Words,
        modulation: Float[Tensor, "b f 6 c"],
        rotary: Rotary,
    ) -> tuple[Float[Tensor, "b l c"], Words]:
        """The tokens for the next block, and what this one made of the text, to be given in its place the next time."""
        frames = modulation.shape[1]
        table = (self.scale_shift_table.unsqueeze(0) + modulation.float()).unsqueeze(3)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = table.unbind(2)

        x = tokens.unflatten(1, (frames, -1))
        normed = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x).flatten(1, 2)
        seen = self.attn1(normed, None, None, rotary).unflatten(1, (frames, -1))
        x = (x.float() + seen * gate).type_as(x).flatten(1, 2)
        words = self._words(text) if isinstance(text, Tensor) else text
        x = x + self._read(x, words)
        x = x.unflatten(1, (frames, -1))
        thought = self.ffn((self.norm3(x.float()) * (1 + scale_ff) + shift_ff).type_as(x))
        return (x.float() + thought.float() * gate_ff).type_as(x).flatten(1, 2), words

    def _words(self, text: Float[Tensor, "b k c"]) -> Words:
        attention = self.attn2
        value = attention.to_v(text)
        if text.shape[1] == 1:  # attention over one token is that token's value, whatever the query
            return (attention.to_out[0](value),)
        return attention.norm_k(attention.to_k(text)), value

    def _read(self, x: Float[Tensor, "b l c"], words: Words) -> Float[Tensor, "b _ c"]:
        """Cross-attention, as `WanAttnProcessor` works it out."""
        if len(words) == 1:
            return words[0]
        attention = self.attn2
        query = attention.norm_q(attention.to_q(self.norm2(x.float()).type_as(x)))
        heads = (part.unflatten(2, (attention.heads, -1)) for part in (query, *words))
        seen = dispatch_attention_fn(*heads, backend=attention.processor._attention_backend)
        return attention.to_out[0](seen.flatten(2, 3).type_as(query))


class MemoryBlock(FrameBlock):
    """A backbone block with VACE's projections: the first mixes the backbone's tokens in, every one gives a hint."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, first: bool, **options: Any):
        super().__init__(dim, ffn_dim, heads, **options)
        self.proj_in = nn.Linear(dim, dim) if first else None
        self.proj_out = nn.Linear(dim, dim)
        self.reset_projections()

    def reset_projections(self) -> None:
        """The way in at random, the way out at zero: the branch says nothing until it is trained."""
        if self.proj_in is not None:
            self.proj_in.reset_parameters()
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(  # type: ignore[override]
        self,
        branch: Float[Tensor, "b l c"],
        tokens: Float[Tensor, "b l c"],
        text: Float[Tensor, "b k c"] | Words,
        modulation: Float[Tensor, "b f 6 c"],
        rotary: Rotary,
    ) -> tuple[Float[Tensor, "b l c"], Float[Tensor, "b l c"], Words]:
        """The branch's tokens for its next block, the hint for the backbone, and what it made of the text."""
        if self.proj_in is not None:
            branch = self.proj_in(branch) + tokens
        branch, words = super().forward(branch, text, modulation, rotary)
        return branch, self.proj_out(branch), words


class MemoryTransformer(WanTransformer3DModel):
    """A Wan transformer that reads the latent spatial memory.

    `memory_layers` are the backbone layers that get a hint (the paper: 0, 4, ..., 28; none: no branch). The branch
    embeds the readout with the backbone's own patch embedding; `readout_channels` further channels of the readout (the
    mask first) and `ray_channels` of camera rays, for all frames, come through zero-initialised embeddings of their
    own.
    """

    _skip_layerwise_casting_patterns: ClassVar = [
        "patch_embedding",
        "readout_embedding",
        "ray_embedding",
        "condition_embedder",
        "norm",
    ]
    _no_split_modules: ClassVar = ["FrameBlock", "MemoryBlock"]
    _repeated_blocks: ClassVar = ["FrameBlock", "MemoryBlock"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        in_channels: int = 48,
        out_channels: int = 48,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 14336,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        memory_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 28),
        readout_channels: int = 1,
        ray_channels: int = 0,
        learned_text: bool = False,
    ):
        super().__init__(
            tuple(patch_size),
            num_attention_heads,
            attention_head_dim,
            in_channels,
            out_channels,
            text_dim,
            freq_dim,
            ffn_dim,
            num_layers,
            cross_attn_norm,
            qk_norm,
            eps,
            image_dim,
            added_kv_proj_dim,
            rope_max_seq_len,
            pos_embed_seq_len,
        )
        if any(not 0 <= layer < num_layers for layer in memory_layers):
            raise InvalidValueError(f"memory_layers must lie between 0 and {num_layers - 1}, got {memory_layers}")
        dim = num_attention_heads * attention_head_dim
        options = {"qk_norm": qk_norm, "cross_attn_norm": cross_attn_norm, "eps": eps}
        self.blocks = nn.ModuleList(
            FrameBlock(dim, ffn_dim, num_attention_heads, added_kv_proj_dim=added_kv_proj_dim, **options)
            for _ in range(num_layers)
        )
        self.memory_blocks = nn.ModuleList(
            MemoryBlock(dim, ffn_dim, num_attention_heads, first=i == 0, **options) for i in range(len(memory_layers))
        )
        self.readout_embedding = _zero_conv(readout_channels, dim, patch_size) if memory_layers else None
        self.ray_embedding = _zero_conv(ray_channels, dim, patch_size) if ray_channels else None
        self.null_text = nn.Parameter(torch.zeros(1, 1, text_dim)) if learned_text else None

    def rotary(self, times: Int[Tensor, " f"], row_shift: Int[Tensor, " f"], rows: int, columns: int) -> Rotary:
        """Rotary cosines and sines of every token; a negative time is the conjugate of its mirror image."""
        device = times.device
        grid = (len(times), rows, columns)
        positions = (
            times[:, None, None].expand(grid),
            (row_shift[:, None] + torch.arange(rows, device=device))[:, :, None].expand(grid),
            torch.arange(columns, device=device).expand(grid),
        )
        dims = [self.rope.t_dim, self.rope.h_dim, self.rope.w_dim]
        tables = zip(positions, self.rope.freqs_cos.split(dims, 1), self.rope.freqs_sin.split(dims, 1), strict=True)
        turns = [(cos[p.abs()], sin[p.abs()] * p.sign()[..., None]) for p, cos, sin in tables]
        cosines, sines = (torch.cat(part, -1).reshape(1, -1, 1, sum(dims)) for part in zip(*turns, strict=True))
        return cosines, sines

    def forward(
        self,
        hidden_states: Float[Tensor, "b c f h w"],
        timestep: Float[Tensor, "b f"],
        encoder_hidden_states: Float[Tensor, "b l d"] | None = None,
        *,
        readout: Float[Tensor, "b c g h w"] | None = None,
        readout_extra: Float[Tensor, "b e g h w"] | None = None,
        rays: Float[Tensor, "b r f h w"] | None = None,
        references: int = 0,
        memory_scale: float = 1.0,
        kept: Kept | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """The network's output for every frame.

        Frames are ordered [references | chunk, preceding]; `timestep` is 0 on clean ones. `readout` and
        `readout_extra` cover the g = f - references frames after the references, which the branch does not see. Without
        a readout, or with `memory_scale` 0, this is the plain backbone with segment-aware positions. `kept` is one
        object for all steps of a chunk, in which nothing but frames and timesteps may differ.
        """
        batch, _, frames, height, width = hidden_states.shape
        patch = self.config.patch_size
        rows, columns = height // patch[1], width // patch[2]
        kept = Kept() if kept is None else kept
        if kept.rotary is None:
            times = torch.arange(-references, frames - references, device=hidden_states.device)
            kept.rotary = self.rotary(times, torch.where(times < 0, rows, 0), rows, columns)

        tokens = self.patch_embedding(hidden_states)
        if self.ray_embedding is not None and rays is not None:
            kept.rays = self.ray_embedding(rays) if kept.rays is None else kept.rays
            tokens = tokens + kept.rays
        tokens = tokens.flatten(2).transpose(1, 2)
        embedder = self.condition_embedder
        if kept.text is None:
            if encoder_hidden_states is None:
                if self.null_text is None:
                    raise InvalidValueError("this backbone has no learned null text; pass encoder_hidden_states")
                encoder_hidden_states = self.null_text.expand(batch, -1, -1)
            kept.text = embedder.text_embedder(encoder_hidden_states)
        with torch.autocast(timestep.device.type, enabled=False):  # in the precision of its weights, as diffusers does
            waves = embedder.timesteps_proj(timestep.flatten()).unflatten(0, (batch, frames))
            embedded = embedder.time_embedder(waves.to(embedder.time_embedder.linear_1.weight.dtype))
        embedded = embedded.type_as(kept.text)
        modulation = embedder.time_proj(embedder.act_fn(embedded)).unflatten(2, (6, -1))

        hints: dict[int, Tensor] = {}
        skip = references * rows * columns
        if readout is not None and memory_scale and self.readout_embedding is not None:
            if kept.branch is None:
                kept.branch = self.patch_embedding(readout)
                if readout_extra is not None:
                    kept.branch = kept.branch + self.readout_embedding(readout_extra)
                kept.branch = kept.branch.flatten(2).transpose(1, 2)
            branch, seen_rotary = kept.branch, tuple(r[:, skip:] for r in kept.rotary)
            for layer, block in zip(self.config.memory_layers, self.memory_blocks, strict=True):
                name = f"memory.{layer}"
                words = kept.words.get(name, kept.text)
                branch, hint, kept.words[name] = self._run(
                    block, branch, tokens[:, skip:], words, modulation[:, references:], seen_rotary
                )
                hints[layer] = hint if memory_scale == 1.0 else memory_scale * hint

        for layer, block in enumerate(self.blocks):
            name = str(layer)
            words = kept.words.get(name, kept.text)
            tokens, kept.words[name] = self._run(block, tokens, words, modulation, kept.rotary)
            if layer in hints:
                tokens = torch.cat([tokens[:, :skip], tokens[:, skip:] + hints[layer]], 1)

        shift, scale = (self.scale_shift_table.unsqueeze(0) + embedded.unsqueeze(2)).unsqueeze(3).unbind(2)
        tokens = tokens.unflatten(1, (frames, -1))
        tokens = self.proj_out((self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens))
        output = tokens.reshape(batch, frames // patch[0], rows, columns, *patch, -1)
        return output.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, frames, height, width)

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    @classmethod
    def from_backbone(
        cls,
        backbone: WanTransformer3DModel,
        memory_layers: tuple[int, ...],
        readout_channels: int = 1,
        ray_channels: int = 0,
    ) -> MemoryTransformer:
        """The paper's start: the backbone's own tensors, and a branch that copies its blocks and adds nothing yet.

        Nothing of the backbone's size is initialised only to be overwritten: the model is laid out without memory and
        given tensors, each in the backbone's precision.
        """
        options = {k: v for k, v in dict(backbone.config).items() if not k.startswith("_")}
        options["patch_size"] = tuple(options["patch_size"])  # a config from a file has lists
        with torch.device("meta"):
            model = cls(
                **options,
                memory_layers=tuple(memory_layers),
                readout_channels=readout_channels,
                ray_channels=ray_channels,
            )
        model.rope = backbone.rope  # its tables are not part of the state
        missing, unexpected = model.load_state_dict(backbone.state_dict(), strict=False, assign=True)
        assert not unexpected and all(key.startswith(BRANCH) for key in missing)
        model._copy_blocks()
        like = backbone.proj_out.weight
        for module in model.modules():
            own = [p for p in module.parameters(recurse=False) if p.is_meta]
            if own:
                module.to_empty(device=like.device, recurse=False).to(like.dtype)
        model._silence_branch()
        return model.train(backbone.training)

    def restart_branch(self) -> None:
        """As `from_backbone` begins: the branch copies the backbone's blocks and adds nothing yet."""
        self._copy_blocks()
        self._silence_branch()

    def _copy_blocks(self) -> None:
        for block, layer in zip(self.memory_blocks, self.config.memory_layers, strict=True):
            source = {key: value.clone() for key, value in self.blocks[layer].state_dict().items()}
            missing = block.load_state_dict(source, strict=False, assign=True).missing_keys
            assert all(key.startswith("proj_") for key in missing)

    def _silence_branch(self) -> None:
        for block in self.memory_blocks:
            assert isinstance(block, MemoryBlock)
            block.reset_projections()
        for embedding in (self.readout_embedding, self.ray_embedding):
            if embedding is not None:
                nn.init.zeros_(embedding.weight)


def _zero_conv(channels: int, dim: int, patch: Sequence[int]) -> nn.Conv3d:
    time, height, width = patch
    kernel = (time, height, width)
    conv = nn.Conv3d(channels, dim, kernel, kernel, bias=False)
    nn.init.zeros_(conv.weight)
    return conv
