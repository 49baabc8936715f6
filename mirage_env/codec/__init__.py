"""Image <-> latent."""

from mirage_env.codec.wan import CodecConfig, WanCodec

__all__ = ["CodecConfig", "WanCodec"]
