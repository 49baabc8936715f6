import numpy as np
import torch

from mirage_env.simulator import materials
from mirage_env.simulator.materials import HELD_OUT, LEVELS, SIZE, STANDARD, bank


def test_the_held_out_family_shares_no_generator_with_the_others():
    standard = {generator for entries in STANDARD.values() for generator, _ in entries}
    held_out = {generator for entries in HELD_OUT.values() for generator, _ in entries}
    assert not standard & held_out


def test_generators_follow_their_seed_and_stay_in_range():
    for generator in (materials.wood, materials.landscape, materials.terrazzo):
        one, again, other = (generator(np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert one.shape == (SIZE, SIZE, 3)
        assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_mip_levels_average_their_finer_level():
    textures = bank("held-out")
    count = sum(len(group) for group in textures.groups.values())
    texels = textures.texels.view(torch.uint8).view(-1, 4)[:, :3].float()
    offsets = [*textures.level_offset.tolist(), len(texels)]
    assert len(offsets) == LEVELS + 1
    for level in range(LEVELS - 1):
        side = SIZE >> level
        fine = texels[offsets[level] : offsets[level + 1]].view(count, side // 2, 2, side // 2, 2, 3).mean((2, 4))
        coarse = texels[offsets[level + 1] : offsets[level + 2]].view(count, side // 2, side // 2, 3)
        assert (fine - coarse).abs().max() <= 1.01  # each level is rounded to bytes by itself
