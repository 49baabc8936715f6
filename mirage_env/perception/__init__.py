"""Image -> depth, sky and moving things."""

from mirage_env.perception.composed import ComposedConfig, ComposedPerception
from mirage_env.perception.tiny import Perceived, Perception, PerceptionConfig, TinyPerception

__all__ = ["ComposedConfig", "ComposedPerception", "Perceived", "Perception", "PerceptionConfig", "TinyPerception"]
