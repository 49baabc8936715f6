"""Image -> depth, sky and moving things."""

from mirage_env.perception.tiny import Perception, PerceptionConfig, TinyPerception

__all__ = ["Perception", "PerceptionConfig", "TinyPerception"]
