"""Procedural ground truth: scenes, exact RGB, depth, sky and dynamic masks, collisions, and paths through them."""

from mirage_env.simulator.collision import free, move
from mirage_env.simulator.render import render, visible_depth
from mirage_env.simulator.scene import FAMILIES, HELD_OUT_FAMILY, TRAINING_SEED, Scene, make_scene
from mirage_env.simulator.trajectories import KINDS, sample_clip, sample_clips, sample_trajectory

__all__ = [
    "FAMILIES",
    "HELD_OUT_FAMILY",
    "KINDS",
    "TRAINING_SEED",
    "Scene",
    "free",
    "make_scene",
    "move",
    "render",
    "sample_clip",
    "sample_clips",
    "sample_trajectory",
    "visible_depth",
]
