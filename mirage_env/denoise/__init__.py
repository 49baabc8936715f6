"""From what the memory shows to clean latents of the next frames."""

from mirage_env.denoise.denoiser import ChunkCondition, Denoiser, DenoiserConfig
from mirage_env.denoise.sampler import SamplerConfig, sample
from mirage_env.denoise.transformer import MemoryTransformer

__all__ = ["ChunkCondition", "Denoiser", "DenoiserConfig", "MemoryTransformer", "SamplerConfig", "sample"]
