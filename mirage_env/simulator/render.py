"""Exact pictures of scenes: analytic ray casting in 8 x 8 pixel tiles, mip-mapped textures, baked light.

Every pixel is worked out by elementwise arithmetic on its own numbers, so that a view looks the same, bit for bit,
alone and in any batch. One sample at the pixel's centre gives depth and masks; pixels on edges are shaded with four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from mirage_env.errors import InvalidValueError
from mirage_env.simulator.lighting import GRID
from mirage_env.simulator.materials import LEVELS, SIZE, Bank, bank
from mirage_env.simulator.scene import Scene
from mirage_env.types import Cameras, Frames

TILE = 8
NEAR_M = 0.02
FAR = 1e9
VIEWS_AT_ONCE = {"cpu": 8, "cuda": 64}
"""Bounds the temporaries of a call; pictures do not depend on it."""
SUB_SAMPLES = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
EDGES = ((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (0, 4), (1, 5), (2, 6), (3, 7))

Vector = tuple[Tensor, ...]
"""x, y, z (or r, g, b), each (P,): separate planes are what elementwise arithmetic likes best."""


def render(
    scenes: Sequence[Scene],
    scene_index: Int[Tensor, "V"],
    cameras: Cameras,
    time_s: Float[Tensor, "V"],
    stride: int = 8,
) -> Frames:
    """What V cameras see: view i shows `scenes[scene_index[i]]` at `time_s[i]` seconds.

    Camera poses are in the scene's world (floor at y = 0, +y down). `depth_m` is the exact z-depth of the pixel centre,
    0 in the sky. `stride` is the codec's, for the shape of `remembered` (all True). Works where the cameras' tensors
    are. Raises InvalidValueError for sizes that are no multiple of 8.
    """
    height, width = cameras.size
    if height % TILE or width % TILE or height % stride or width % stride:
        raise InvalidValueError(f"height and width must be multiples of {max(TILE, stride)}, got {height} x {width}")
    device = cameras.world_from_camera.device
    count, numbers = len(cameras), scene_index.tolist()
    rgb = torch.empty(count, height, width, 3, dtype=torch.uint8, device=device)
    depth = torch.empty(count, height, width, device=device)
    sky = torch.empty(count, height, width, dtype=torch.bool, device=device)
    dynamic = torch.empty_like(sky)
    batch = max(1, VIEWS_AT_ONCE[device.type] * 128 * 128 // (height * width))
    for key in sorted({scenes[i].bank for i in numbers}):
        textures = bank(key, str(device))
        mine = [view for view, i in enumerate(numbers) if scenes[i].bank == key]
        for first in range(0, len(mine), batch):
            views = torch.tensor(mine[first : first + batch], device=device)
            used = sorted({numbers[v] for v in mine[first : first + batch]})
            where = torch.tensor([used.index(numbers[v]) for v in mine[first : first + batch]], device=device)
            chunk = Cameras(cameras.world_from_camera[views], cameras.intrinsics_px[views], cameras.size)
            stage = _stage([scenes[i].to(device) for i in used], where, chunk, time_s.to(device)[views])
            rgb[views], depth[views], sky[views], dynamic[views] = _picture(stage, textures)
    remembered = torch.ones(count, height // stride, width // stride, dtype=torch.bool, device=device)
    return Frames(rgb, depth, sky, dynamic, remembered, cameras)


def visible_depth(scene: Scene, cameras: Cameras, time_s: float = 0.0) -> Float[Tensor, "V H W"]:
    """The z-depth that `render` gives, without the picture; FAR (1e9) in the sky."""
    views, (height, width) = len(cameras), cameras.size
    device = cameras.world_from_camera.device
    where = torch.zeros(views, dtype=torch.int64, device=device)
    stage = _stage([scene.to(device)], where, cameras, torch.full((views,), time_s, device=device))
    view, x, y = _pixels(views, height, width, device)
    return _first_hits(stage, _directions(stage, view, x, y))[0].reshape(views, height, width)


@dataclass(frozen=True)
class _Stage:
    """V views with the objects of their scenes in front of them, N a view (padded)."""

    cameras: Cameras
    """V cameras."""
    ray: Tensor
    """(3, 3, V): world direction = ray[:, 0] x + ray[:, 1] y + ray[:, 2] at pixel (x, y); its camera z is 1."""
    pixel: Tensor
    """(V,) size of a pixel at depth 1."""
    columns: dict[str, Tensor]
    """(V * N,) one number an object and view: where it is, its look."""
    low: Tensor
    """(V, N, 3) first tile, last tile + 1 and near depth come from these screen boxes: x, y, z at their least."""
    high: Tensor
    """(V, N, 3) x, y, z at their greatest; empty boxes were not in view."""
    per_scene: dict[str, Tensor]
    """(S,) numbers a scene: light box, sky."""
    scene: Tensor
    """(V,) scene of each view."""
    light: Tensor
    """(S * cells, 6)"""


def _stage(scenes: list[Scene], where: Tensor, cameras: Cameras, time_s: Tensor) -> _Stage:
    device = cameras.world_from_camera.device
    most = max(len(s.half) for s in scenes)
    rows = []
    for s in scenes:
        number = [
            s.yaw.cos(),
            s.yaw.sin(),
            s.ellipsoid.float(),
            s.texture.float(),
            s.uv_turned.float(),
            s.glow,
            (s.mover >= 0).float(),
        ]
        table = torch.cat([s.centre, s.half, s.tint, s.uv_scale, s.uv_offset, torch.stack(number, 1)], 1)
        rows.append(pad(table, (0, 0, 0, most - len(table))))
    table = torch.stack(rows)[where]
    for view, i in enumerate(where.tolist()):
        s = scenes[i]
        if len(s.period_s):
            offset = s.mover_offset(time_s[view : view + 1])[0]
            table[view, : len(s.mover), :3] += torch.where((s.mover >= 0)[:, None], offset[s.mover.clamp(min=0)], 0.0)
    valid = (
        torch.arange(most, device=device) < torch.tensor([len(s.half) for s in scenes], device=device)[where][:, None]
    )

    k, pose = cameras.intrinsics_px, cameras.world_from_camera
    rotation, eye = pose[:, :3, :3], pose[:, :3, 3]
    fx, fy = k[:, 0, 0, None], k[:, 1, 1, None]
    along_x = rotation[..., 0] / fx
    along_y = rotation[..., 1] / fy - rotation[..., 0] * (k[:, 0, 1, None] / (fx * fy))
    ahead = rotation[..., 2] - along_x * k[:, 0, 2, None] - along_y * k[:, 1, 2, None]
    ray = torch.stack([along_x, along_y, ahead], 0).permute(2, 0, 1).contiguous()

    cos, sin = table[..., 15], table[..., 16]
    gap = eye[:, None] - table[..., :3]
    origin = torch.stack(
        [cos * gap[..., 0] - sin * gap[..., 2], gap[..., 1], sin * gap[..., 0] + cos * gap[..., 2]], -1
    )
    low, high = _screen_boxes(table, cameras)
    high = torch.where(valid[..., None], high, -FAR)
    names = (
        *("centre_x", "centre_y", "centre_z", "half_x", "half_y", "half_z", "tint_r", "tint_g", "tint_b"),
        *("scale_x", "scale_y", "scale_z", "offset_x", "offset_y", "offset_z", "cos", "sin"),
        *("ellipsoid", "texture", "turned", "glow", "moving"),
    )
    columns = dict(zip(names, table.flatten(0, 1).t().contiguous(), strict=True))
    columns |= dict(zip(("origin_x", "origin_y", "origin_z"), origin.flatten(0, 1).t().contiguous(), strict=True))
    box = torch.stack([s.light_box for s in scenes])
    cell = (box[:, 1] - box[:, 0]) / torch.tensor(GRID, device=device)
    sky = torch.stack([torch.cat([s.zenith, s.horizon, s.zenith.new_tensor([float(s.cloud_texture)])]) for s in scenes])
    scene_numbers = torch.cat([box[:, 0], 1.0 / cell, sky], 1)
    keys = (
        "low_x",
        "low_y",
        "low_z",
        "per_x",
        "per_y",
        "per_z",
        "zen_r",
        "zen_g",
        "zen_b",
        "hor_r",
        "hor_g",
        "hor_b",
        "cloud",
    )
    per_scene = dict(zip(keys, scene_numbers.t().contiguous(), strict=True))
    light = torch.stack([s.light.flatten(1).t() for s in scenes]).flatten(0, 1).contiguous()
    return _Stage(cameras, ray, 1.0 / k[:, 0, 0], columns, low, high, per_scene, where, light)


def _screen_boxes(table: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """(V, N, 3) least and greatest (x px, y px, depth) of every object's box, clipped at the near plane."""
    cos, sin = table[..., 15, None], table[..., 16, None]
    signs = torch.tensor([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)], device=table.device) * 2.0 - 1.0
    local = table[..., None, 3:6] * signs
    world = torch.stack(
        [cos * local[..., 0] + sin * local[..., 2], local[..., 1], cos * local[..., 2] - sin * local[..., 0]], -1
    )
    world = world + table[..., None, :3]
    e = cameras.camera_from_world[:, None, None]
    at = [(e[..., i, :3] * world).sum(-1) + e[..., i, 3] for i in range(3)]
    camera = torch.stack(at, -1)
    one, two = camera[..., [a for a, _ in EDGES], :], camera[..., [b for _, b in EDGES], :]
    rise = two[..., 2] - one[..., 2]
    share = (NEAR_M - one[..., 2]) / torch.where(rise.abs() < 1e-9, 1e-9, rise)
    crossing = one + (two - one) * share[..., None]
    every = torch.cat([camera, crossing], -2)
    seen = torch.cat([camera[..., 2] >= NEAR_M, (share > 0) & (share < 1)], -1)
    z = every[..., 2].clamp(min=0.5 * NEAR_M)
    k = cameras.intrinsics_px[:, None, None]
    x = (k[..., 0, 0] * every[..., 0] + k[..., 0, 1] * every[..., 1]) / z + k[..., 0, 2]
    y = k[..., 1, 1] * every[..., 1] / z + k[..., 1, 2]
    screen = torch.stack([x, y, every[..., 2]], -1)
    low = torch.where(seen[..., None], screen, FAR).amin(-2)
    high = torch.where(seen[..., None], screen, -FAR).amax(-2)
    return low, high


def _picture(stage: _Stage, textures: Bank) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RGB (V, H, W, 3), depth, sky and dynamic (V, H, W) of a stage."""
    views, (height, width) = len(stage.cameras), stage.cameras.size
    device = stage.ray.device
    view, x, y = _pixels(views, height, width, device)
    ray = _directions(stage, view, x, y)
    depth, row = _first_hits(stage, ray)
    sky = row < 0
    colour, face = _shade(stage, textures, view, ray, depth, row)

    picture_face, picture_row = (t.reshape(views, height, width) for t in (face, row))
    edge = _edges(picture_row * 8 + picture_face)
    pixels = edge.flatten().nonzero()[:, 0]
    if len(pixels):
        colour[:, pixels] = _refined(stage, textures, view[pixels], x[pixels], y[pixels], picture_row, pixels)
    shape = (views, height, width)
    moving = (stage.columns["moving"][row.clamp(min=0)] > 0) & ~sky
    rgb = (colour.sqrt() * 255.0 + 0.5).to(torch.uint8).reshape(3, *shape).permute(1, 2, 3, 0)
    return rgb, torch.where(sky, 0.0, depth).reshape(shape), sky.reshape(shape), moving.reshape(shape)


def _edges(key: Tensor) -> Tensor:
    """(V, H, W) pixels whose key differs from a direct neighbour's."""
    edge = torch.zeros_like(key, dtype=torch.bool)
    across, down = key[:, :, 1:] != key[:, :, :-1], key[:, 1:] != key[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return edge


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[index] for 1-D values; several times faster than indexing with brackets."""
    return values.index_select(0, index.reshape(-1)).view(index.shape)


def _pixels(views: int, height: int, width: int, device: torch.device) -> Vector:
    """View number and centre (x, y) of every pixel, in image order, each (V * H * W,)."""
    view = torch.arange(views, device=device)[:, None, None].expand(views, height, width)
    y = (torch.arange(height, device=device) + 0.5)[:, None].expand_as(view)
    x = (torch.arange(width, device=device) + 0.5).expand_as(view)
    return view.reshape(-1), x.reshape(-1), y.reshape(-1)


def _directions(stage: _Stage, view: Tensor, x: Tensor, y: Tensor) -> Vector:
    """World directions of image positions, each (P,); times z-depth they are offsets from the eye."""
    r = stage.ray
    dx, dy, dz = (_at(r[i, 0], view) * x + _at(r[i, 1], view) * y + _at(r[i, 2], view) for i in range(3))
    return dx, dy, dz


def _hit(stage: _Stage, rows: Tensor, ray: Vector) -> Tensor:
    """z-depth at which rays meet the objects `rows` (broadcast), FAR where they miss or start inside."""
    c = {name: _at(stage.columns[name], rows) for name in _GEOMETRY}
    dx, dy, dz = ray
    local = (c["cos"] * dx - c["sin"] * dz, dy, c["sin"] * dx + c["cos"] * dz)
    enter, leave = None, None
    for axis, d in zip("xyz", local, strict=True):
        inverse = 1.0 / torch.where(d.abs() < 1e-9, 1e-9, d)
        middle = c["origin_" + axis] * inverse
        reach = inverse.abs_() * c["half_" + axis]
        low, high = (-middle).sub_(reach), reach.sub_(middle)
        enter = low if enter is None else torch.maximum(enter, low)
        leave = high if leave is None else torch.minimum(leave, high)
    assert enter is not None and leave is not None
    depth = torch.where((enter < leave) & (enter > NEAR_M), enter, FAR)
    round_ = (c["ellipsoid"] > 0).flatten().nonzero()[:, 0]
    if len(round_):
        depth[round_] = _hit_ellipsoid({n: t[round_] for n, t in c.items()}, tuple(d[round_] for d in local))
    return depth


_GEOMETRY = ("cos", "sin", "origin_x", "origin_y", "origin_z", "half_x", "half_y", "half_z", "ellipsoid")


def _hit_ellipsoid(c: dict[str, Tensor], local: Vector) -> Tensor:
    o = [c["origin_" + n] / c["half_" + n] for n in "xyz"]
    d = [v / c["half_" + n] for n, v in zip("xyz", local, strict=True)]
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    # The nearest approach to the centre, not b^2 - a c: far from a small ellipsoid that loses all its digits.
    t = -b / a
    foot = [p + t * v for p, v in zip(o, d, strict=True)]
    inside = 1.0 - (foot[0] * foot[0] + foot[1] * foot[1] + foot[2] * foot[2])
    depth = t - (inside.clamp(min=0.0) / a).sqrt()
    return torch.where((inside > 0) & (depth > NEAR_M), depth, FAR)


def _first_hits(stage: _Stage, ray: Vector) -> tuple[Tensor, Tensor]:
    """z-depth and row (view * N + object; -1 for sky) of what each pixel's ray meets first, in image order (P,)."""
    views, (height, width) = len(stage.cameras), stage.cameras.size
    across, down = width // TILE, height // TILE
    count = stage.low.shape[1]
    device = stage.ray.device

    def to_tiles(t: Tensor) -> Tensor:
        return t.reshape(views, down, TILE, across, TILE).transpose(2, 3).reshape(-1, TILE * TILE)

    def to_image(t: Tensor) -> Tensor:
        return t.reshape(views, down, across, TILE, TILE).transpose(2, 3).reshape(-1)

    # Objects from near to far, so that a tile that is already covered can skip what lies behind.
    order = stage.low[..., 2].argsort(dim=1, stable=True)
    low, high = (t.gather(1, order[..., None].expand(-1, -1, 3)) for t in (stage.low, stage.high))
    x = torch.arange(across, device=device) * TILE
    y = torch.arange(down, device=device) * TILE
    in_x = (low[:, None, :, 0] <= x[:, None] + TILE) & (high[:, None, :, 0] >= x[:, None])
    in_y = (low[:, None, :, 1] <= y[:, None] + TILE) & (high[:, None, :, 1] >= y[:, None])
    overlap = (in_y[:, :, None] & in_x[:, None]).reshape(-1, count)
    tile, rank = overlap.nonzero(as_tuple=True)
    tile_view = tile // (across * down)
    slot = tile_view * count + rank
    rows = (tile_view * count + _at(order.flatten(), slot)).to(torch.int32)
    near = _at(low[..., 2].flatten(), slot)
    number = overlap.sum(1)
    start = number.cumsum(0) - number

    dx, dy, dz = (to_tiles(d) for d in ray)
    depth = torch.full_like(dx, FAR)
    row = torch.full(dx.shape, -1, dtype=torch.int32, device=device)
    farthest = torch.full((len(dx),), FAR, device=device)
    for k in range(int(number.max()) if len(number) else 0):
        active = (number > k).nonzero()[:, 0]
        candidate = start[active] + k
        open_ = _at(near, candidate) < _at(farthest, active)
        active, candidate = active[open_], candidate[open_]
        if not len(active):
            continue
        objects = _at(rows, candidate)
        found = _hit(
            stage,
            objects[:, None],
            (dx.index_select(0, active), dy.index_select(0, active), dz.index_select(0, active)),
        )
        old = depth.index_select(0, active)
        better = found < old
        old = torch.minimum(old, found)
        depth.index_copy_(0, active, old)
        row.index_copy_(0, active, torch.where(better, objects[:, None], row.index_select(0, active)))
        farthest.index_copy_(0, active, old.amax(1))
    return to_image(depth), to_image(row).long()


def _refined(
    stage: _Stage, textures: Bank, view: Tensor, x: Tensor, y: Tensor, picture_row: Tensor, pixels: Tensor
) -> Tensor:
    """(3, P) colours of edge pixels from four samples, cast against what the pixel and its neighbours show."""
    padded = pad(picture_row[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0].long()
    near = [picture_row, padded[:, 1:-1, 2:], padded[:, 1:-1, :-2], padded[:, 2:, 1:-1], padded[:, :-2, 1:-1]]
    candidates = [_at(n.reshape(-1), pixels).repeat(4) for n in near]
    jitter_x = torch.tensor([s for s, _ in SUB_SAMPLES], device=x.device).repeat_interleave(len(pixels))
    jitter_y = torch.tensor([s for _, s in SUB_SAMPLES], device=x.device).repeat_interleave(len(pixels))
    view = view.repeat(4)
    ray = _directions(stage, view, x.repeat(4) + jitter_x, y.repeat(4) + jitter_y)
    depth, row = torch.full_like(ray[0], FAR), torch.full_like(candidates[0], -1)
    open_sky = torch.zeros_like(row, dtype=torch.bool)
    for c in candidates:
        found = torch.where(c >= 0, _hit(stage, c.clamp(min=0), ray), FAR)
        row = torch.where(found < depth, c, row)
        depth = torch.minimum(depth, found)
        open_sky |= c < 0
    # A sample that slips between the neighbours' objects without any of them showing sky has nothing to say.
    weight = ((row >= 0) | open_sky).float()
    weight = torch.where(weight.reshape(4, -1).amax(0).repeat(4) > 0, weight, 1.0).reshape(4, -1)
    colour, _ = _shade(stage, textures, view, ray, depth, row)
    colour = colour.reshape(3, 4, -1) * weight
    total = weight[0] + weight[1] + weight[2] + weight[3]
    return (colour[:, 0] + colour[:, 1] + colour[:, 2] + colour[:, 3]) / total


def _shade(
    stage: _Stage, textures: Bank, view: Tensor, ray: Vector, depth: Tensor, row: Tensor
) -> tuple[Tensor, Tensor]:
    """Linear colour (3, P) in [0, 1] and face number (P,) of samples that hit `row` at `depth` (-1: sky)."""
    sky = row < 0
    c = stage.columns
    obj = row.clamp(min=0)

    def take(name: str) -> Tensor:
        return _at(c[name], obj)

    t = torch.where(sky, 1.0, depth)
    dx, dy, dz = ray
    cos, sin = take("cos"), take("sin")
    lx = take("origin_x") + t * (cos * dx - sin * dz)
    ly = take("origin_y") + t * dy
    lz = take("origin_z") + t * (sin * dx + cos * dz)

    # The outward normal in the object's frame; texture axes follow its largest component, as on a cube.
    qx, qy, qz = lx / take("half_x"), ly / take("half_y"), lz / take("half_z")
    ax, ay, az = qx.abs(), qy.abs(), qz.abs()
    on_x = (ax >= ay) & (ax >= az)
    on_y = ~on_x & (ay >= az)
    on_z = ~(on_x | on_y)
    nx, ny, nz = qx.sign() * on_x, qy.sign() * on_y, qz.sign() * on_z
    face = (on_y * 2 + on_z * 4 + (qx * on_x + qy * on_y + qz * on_z > 0)).to(torch.int64)
    round_ = ((take("ellipsoid") > 0) & ~sky).nonzero()[:, 0]
    if len(round_):
        which = obj[round_]
        gx, gy, gz = (q[round_] / c["half_" + n][which] for q, n in zip((qx, qy, qz), "xyz", strict=True))
        length = (gx * gx + gy * gy + gz * gz).sqrt().clamp(min=1e-9)
        nx[round_], ny[round_], nz[round_] = gx / length, gy / length, gz / length
        face[round_] = 0

    u = torch.where(on_x, lz * take("scale_z") + take("offset_z"), lx * take("scale_x") + take("offset_x"))
    v = torch.where(on_y, lz * take("scale_z") + take("offset_z"), ly * take("scale_y") + take("offset_y"))
    turned = take("turned") > 0
    u, v = torch.where(turned, v, u), torch.where(turned, u, v)

    world_nx, world_nz = cos * nx + sin * nz, cos * nz - sin * nx
    slope = (world_nx * dx + ny * dy + world_nz * dz).abs() / (dx * dx + dy * dy + dz * dz).sqrt()
    density = torch.where(on_x, take("scale_z"), take("scale_x"))
    footprint = t * _at(stage.pixel, view) * density * SIZE / slope.clamp(min=0.05).sqrt()
    texture = take("texture").to(torch.int32)
    red, green, blue = _sample(textures, texture, u, v, footprint)

    eye = stage.cameras.world_from_camera[:, :3, 3].t().contiguous()
    point = (_at(eye[0], view) + t * dx, _at(eye[1], view) + t * dy, _at(eye[2], view) + t * dz)
    irradiance = _irradiance(stage, view, point, (world_nx, ny, world_nz))
    glow = take("glow")
    channels = []
    for value, tint, light in zip((red, green, blue), ("tint_r", "tint_g", "tint_b"), irradiance, strict=True):
        value = value * take(tint)
        lit = value * value * (light + 1.6 * glow) * 1.3
        channels.append(lit * (1.0 + 0.16 * lit) / (1.0 + lit * 0.62))
    colour = torch.stack(channels)
    blank = sky.nonzero()[:, 0]
    if len(blank):
        colour[:, blank] = _sky(stage, textures, view[blank], tuple(d[blank] for d in ray))
        face[blank] = 0
    return colour.clamp_(0.0, 1.0), face


def _sample(textures: Bank, texture: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> Vector:
    """Trilinear look-up: (P,) colours in [0, 1] of `texture` at (u, v) repetitions, `footprint` texels wide."""
    level = footprint.clamp(min=1.0, max=float(SIZE)).log2().clamp(max=LEVELS - 1.001)
    base = level.floor()
    blend = level - base
    base = base.to(torch.int32)
    u, v = u - u.floor(), v - v.floor()
    total = None
    for step, share in ((0, 1.0 - blend), (1, blend)):
        mip = base + step
        side = torch.bitwise_right_shift(torch.full_like(mip, SIZE), mip)
        x, y = u * side - 0.5, v * side - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = x - x0, y - y0
        mask = side - 1
        x0, y0 = x0.to(torch.int32), y0.to(torch.int32)
        x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
        x0, y0 = x0 & mask, y0 & mask
        start = _at(textures.level_offset, mip) + texture * side * side
        top, bottom = start + y0 * side, start + y1 * side
        right, down = fx * share, fy * share
        both = fx * down
        weights = (share - right - down + both, right - both, down - both, both)
        for index, weight in zip((top + x0, top + x1, bottom + x0, bottom + x1), weights, strict=True):
            texel = _at(textures.texels, index).view(torch.uint8).view(-1, 4).float()
            texel *= weight[:, None]
            total = texel if total is None else total.add_(texel)
    assert total is not None
    total = total.t().contiguous() / 255.0
    return total[0], total[1], total[2]


def _irradiance(stage: _Stage, view: Tensor, point: Vector, normal: Vector) -> list[Tensor]:
    """(P,) RGB irradiance from the baked grid, looked up one cell off the surface."""
    scene = _at(stage.scene, view)
    index, weight = [], []
    for p, n, axis, size in zip(point, normal, "xyz", GRID, strict=True):
        per = _at(stage.per_scene["per_" + axis], scene)
        g = (p - _at(stage.per_scene["low_" + axis], scene)) * per + (0.9 * n - 0.5)
        g = g.clamp(0.0, size - 1.001)
        floor = g.floor()
        index.append(floor.to(torch.int32))
        weight.append(g - floor)
    cells = GRID[0] * GRID[1] * GRID[2]
    start = scene.to(torch.int32) * cells + (index[0] * GRID[1] + index[1]) * GRID[2] + index[2]
    corner, share = [], []
    for i in (0, 1):
        wx = weight[0] if i else 1.0 - weight[0]
        for j in (0, 1):
            wxy = wx * (weight[1] if j else 1.0 - weight[1])
            for k in (0, 1):
                share.append(wxy * (weight[2] if k else 1.0 - weight[2]))
                corner.append(start + ((i * GRID[1] + j) * GRID[2] + k))
    # One fused weighted gather of the eight corners.
    total = embedding_bag(torch.stack(corner, 1), stage.light, mode="sum", per_sample_weights=torch.stack(share, 1))
    total = total.t().contiguous()
    directed = 1.0 + total[3] * normal[0] + total[4] * normal[1] + total[5] * normal[2]
    directed = directed.clamp(min=0.12)
    return [total[i] * directed for i in range(3)]


def _sky(stage: _Stage, textures: Bank, view: Tensor, ray: Vector) -> Tensor:
    """(3, P) sky by direction alone: a gradient from horizon to zenith with soft clouds."""
    scene = _at(stage.scene, view)
    dx, dy, dz = ray
    length = (dx * dx + dy * dy + dz * dz).sqrt()
    up = (-dy / length).clamp(min=0.0)
    s = stage.per_scene
    reach = 0.22 / (up + 0.18)
    u, v = reach * dx / length, reach * dz / length
    footprint = _at(stage.pixel, view) * reach * SIZE
    density, _, _ = _sample(textures, _at(s["cloud"], scene).to(torch.int32), u, v, footprint)
    cloud = 0.85 * density * (up * 5.0).clamp(max=1.0)
    high = up * (2.0 - up)
    colours = [_at(s["hor_" + n], scene) * (1.0 - high) + _at(s["zen_" + n], scene) * high for n in "rgb"]
    return torch.stack([colour * (1.0 - cloud) + 0.93 * cloud for colour in colours])
