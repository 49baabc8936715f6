"""The whole way from nothing to the weights of a preset.

render, codec, perception, latents; the tiny decoder; what the memory reads with; the refiner of the warp, the denoiser
with it; then the denoiser walks by itself and is fine-tuned on its own walks; then it learns to invent, against a
critic; last perception learns to see what it makes, and the drawer how deep places may be that nobody has seen, at
first beside true places and then in dreams of its own. In place of joint training a recipe may have the paper's
stages: a backbone without memory, the branch on the frozen backbone, LoRA with the branch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

import numpy as np
import torch
from torch import nn

from mirage_env.artefacts import whole_file
from mirage_env.codec.wan import WanCodec
from mirage_env.config import load_config
from mirage_env.denoise.denoiser import Denoiser
from mirage_env.denoise.pretrained import LoraShape
from mirage_env.errors import ImageError, InvalidValueError, UnknownNameError, WeightsError
from mirage_env.memory import Memory, make_memory
from mirage_env.memory.none import NoMemory
from mirage_env.memory.resampled import ResampledMemory, ResampledMemoryConfig
from mirage_env.perception.drawn import DepthDrawer, DrawerConfig
from mirage_env.perception.tiny import PerceptionConfig, TinyPerception
from mirage_env.resources import ENVS_CONFIG, sha256_of
from mirage_env.training.clips import ClipConfig, ClipStore, render_clips
from mirage_env.training.codec import CodecLossConfig, CodecStage
from mirage_env.training.drawer import DrawerLossConfig, DrawerStage, asked_name, find_asked, find_unseen
from mirage_env.training.full_size import AdapterRecipe, adapter_stage
from mirage_env.training.invention import InventionLossConfig, InventionStage
from mirage_env.training.latents import encode_latents, glimpse_clips, predict_depth, walk_clips
from mirage_env.training.loop import LoopConfig, Stage, Training, train
from mirage_env.training.perception import PerceptionLossConfig, PerceptionStage
from mirage_env.training.photos import photo_crops
from mirage_env.training.resampler import ResamplerStage
from mirage_env.training.sight import SightStage
from mirage_env.training.tiny_decoder import TinyDecoderLossConfig, TinyDecoderStage
from mirage_env.training.world import WorldLossConfig, WorldStage, WorldStageName
from mirage_env.weights import load_weights, read_card
from mirage_env.weights.checkpoint import check_extra, find
from mirage_env.world_model import Preset, WorldModel

if TYPE_CHECKING:
    from accelerate import Accelerator

STAGES = (
    "render", "codec", "perception", "latents", "tiny_decoder", "memory", "refiner", "backbone", "branch", "lora",
    "denoiser", "walks", "finetune", "invention", "glimpses", "sight", "unseen", "drawer", "asked", "dreams",
)  # fmt: skip
"""In their order; a recipe has those that it has a YAML for, and what they need."""
_GOES_ON_FROM = {
    "denoiser": ("refiner",),
    "finetune": ("denoiser",),
    "invention": ("finetune", "denoiser"),
    "backbone": ("refiner",),
    "branch": ("backbone",),
    "lora": ("branch",),
    "sight": ("invention", "finetune", "denoiser"),
    "drawer": ("sight",),
    "dreams": ("drawer",),
}
"""The first of them that a recipe has."""
_DENOISES = ("refiner", "backbone", "branch", "lora", "denoiser", "finetune", "invention")
"""Stages that leave a whole denoiser each."""
_PARTS = ("codec", "perception", "denoiser", "memory", "tiny_decoder", "drawer")
"""Of a model, a file of weights each."""
_MADE_FOR = {"walks": "finetune", "glimpses": "sight", "unseen": "drawer", "asked": "dreams"}
"""What is worked out for one stage alone."""
Report = Callable[[int, int, dict[str, float]], None]
"""(done, total, latest values)"""


@dataclass(frozen=True)
class CodecTraining(Training):
    loss: CodecLossConfig = field(default_factory=CodecLossConfig)


@dataclass(frozen=True)
class PerceptionTraining(Training):
    loss: PerceptionLossConfig = field(default_factory=PerceptionLossConfig)


@dataclass(frozen=True)
class TinyDecoderTraining(Training):
    loss: TinyDecoderLossConfig = field(default_factory=TinyDecoderLossConfig)


@dataclass(frozen=True)
class WorldTraining(Training):
    loss: WorldLossConfig = field(default_factory=WorldLossConfig)


@dataclass(frozen=True)
class WalkTraining(WorldTraining):
    """Goes on from the denoiser's weights, on clips along which that denoiser has walked."""

    clips: int = 400
    """Walks a store, along its first clips."""
    chunk: int = 5


@dataclass(frozen=True)
class InventionTraining(Training):
    """Goes on from the denoiser's weights."""

    loss: InventionLossConfig = field(default_factory=InventionLossConfig)


@dataclass(frozen=True)
class SightTraining(PerceptionTraining):
    """Goes on from the perception's weights, with what the last denoiser of the recipe makes."""

    clips: int = 400
    """Walks a store, along its last clips; those that validate come last."""
    strides: tuple[int, ...] = (1, 2, 3, 4)
    """Every how many-th frame of its clip a walk meets, by turns: an agent's steps are longer than a film's."""
    chunks: tuple[int, ...] = (1, 4, 8)
    """Frames at a time, by turns."""

    def __post_init__(self) -> None:
        if not self.strides or not self.chunks or min(self.clips, *self.strides, *self.chunks) < 1:
            raise InvalidValueError(
                f"clips, strides and chunks must be positive, got {self.clips}, {self.strides} and {self.chunks}"
            )


@dataclass(frozen=True)
class DrawerTraining(Training):
    """Learns on the walks of the stage `sight`, with the eyes that came out of it."""

    loss: DrawerLossConfig = field(default_factory=DrawerLossConfig)


@dataclass(frozen=True)
class DreamsTraining(DrawerTraining):
    """Goes on from the drawer's weights, with what it is asked on walks of its own."""

    clips: int = 400
    """Walks a store, along its last clips; those that validate come last."""
    strides: tuple[int, ...] = (3,)
    """Every how many-th frame of its clip a walk meets, by turns: agents turn by thirty degrees."""

    def __post_init__(self) -> None:
        if not self.strides or min(self.clips, *self.strides) < 1:
            raise InvalidValueError(f"clips and strides must be positive, got {self.clips} and {self.strides}")


@dataclass(frozen=True)
class LoraTraining(WorldTraining):
    """Goes on from the branch's weights."""

    lora: LoraShape = field(default_factory=LoraShape)


@dataclass(frozen=True)
class TrainingData:
    """`data.yaml` of a recipe."""

    preset: str
    """Of the model that is trained."""
    stores: tuple[ClipConfig, ...]
    photo_crops: int = 60
    """Random crops of each photograph."""

    def __post_init__(self) -> None:
        if not self.stores:
            raise InvalidValueError("a recipe needs at least one clip store")


@dataclass(frozen=True)
class Recipe:
    """A folder in `envs_config/train/`: one YAML for the data, one for each stage that learns."""

    data: TrainingData
    codec: CodecTraining
    perception: PerceptionTraining
    tiny_decoder: TinyDecoderTraining | None = None
    memory: WorldTraining | None = None
    refiner: WorldTraining | None = None
    denoiser: WorldTraining | None = None
    finetune: WalkTraining | None = None
    backbone: WorldTraining | None = None
    branch: WorldTraining | None = None
    lora: LoraTraining | None = None
    invention: InventionTraining | None = None
    sight: SightTraining | None = None
    drawer: DrawerTraining | None = None
    dreams: DreamsTraining | None = None

    def __post_init__(self) -> None:
        for stage, before in _GOES_ON_FROM.items():
            if before != ("refiner",) and getattr(self, stage) and not any(getattr(self, x) for x in before):
                raise InvalidValueError(
                    f"stage {stage} goes on from stage {before[-1]}, which the recipe lacks; add it"
                )

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages, in their order."""
        missing = {f.name for f in fields(self) if getattr(self, f.name) is None}
        missing |= {made for made, stage in _MADE_FOR.items() if stage in missing}
        return tuple(x for x in STAGES if x not in missing)

    def before(self, stage: str) -> str | None:
        """The stage whose denoiser this one goes on from, where there is one."""
        return next((x for x in _GOES_ON_FROM.get(stage, ()) if x in self.stages), None)


def load_recipe(source: str | Path) -> Recipe | AdapterRecipe:
    """A recipe by its name in `envs_config/train`, or from the path of a folder; with `adapter.yaml`, at full size.

    The path of a preset (.yaml) that names a public checkpoint is trained by the recipe of wan2.2-ti2v-5b.
    """
    if str(source).endswith((".yaml", ".yml")):
        plan = load_recipe("wan2.2-ti2v-5b")
        assert isinstance(plan, AdapterRecipe)
        return replace(plan, adapter=replace(plan.adapter, preset=str(source)))
    folder = ENVS_CONFIG / "train" / source
    if not _is_recipe(folder):
        folder = Path(source).expanduser()
    if not _is_recipe(folder):
        known = (path.name for path in (ENVS_CONFIG / "train").iterdir() if _is_recipe(path))
        raise UnknownNameError("recipe", str(source), known)
    cls: Any = AdapterRecipe if (folder / "adapter.yaml").is_file() else Recipe
    parts = {}
    for name in (f.name for f in fields(cls)):
        file, hint = folder / f"{name}.yaml", get_type_hints(cls)[name]
        kinds = get_args(hint) or (hint,)
        if file.is_file() or NoneType not in kinds:
            parts[name] = load_config(file, kinds[0])
    return cls(**parts)


def _is_recipe(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("data.yaml", "adapter.yaml"))


def run_stage(
    stage: str,
    recipe: Recipe | AdapterRecipe,
    folder: Path,
    photos: Path | None = None,
    data: Path | None = None,
    device: str = "cpu",
    stop_after_s: float = math.inf,
    report: Report = lambda done, total, values: None,
    start: str | Path | None = None,
) -> bool:
    """Runs one stage in `folder`, going on where it was cut off; True when it is whole.

    `start` is a finished model that it goes on from, see `begin_with`.
    `photos` is a folder of pictures that the codec also learns from; without one it learns from the simulator alone.
    `data` is the store of videos that an adapter learns from, see `adapter_stage`.
    Every stage leaves its weights in `folder` under its own name: codec, perception and sight (which is one, too),
    tiny_decoder, memory and drawer, and all others a whole denoiser each. `folder/weights` holds a model that
    `load_world` takes: of each part that of the stage that was finished last. Under `accelerate launch` all processes
    train together.
    """
    if stage not in recipe.stages:
        raise UnknownNameError("training stage", stage, recipe.stages)
    if isinstance(recipe, AdapterRecipe):
        accelerator = _accelerator(device)
        torch.manual_seed(0)  # the first weights
        job: Stage = adapter_stage(stage, recipe, folder, data, _place(device, accelerator))
        return _train(job, getattr(recipe, stage).loop, folder, device, accelerator, stop_after_s, report)
    preset = load_config(recipe.data.preset, Preset)
    if start is not None:
        with _first_process_first(_accelerator(device)):
            begin_with(start, recipe, stage, folder)
    if stage in ("render", "latents", *_MADE_FOR):
        accelerator = _accelerator(device)
        with _first_process_first(accelerator):
            _prepare(stage, recipe, preset, folder, _place(device, accelerator), report)
        return True
    return _learn(stage, recipe, preset, folder, photos, device, stop_after_s, report)


def begin_with(source: str | Path, recipe: Recipe, stage: str, folder: Path) -> None:
    """Lets `stage` go on from a finished model: the weights that the training in `folder` lacks are copied there; clips
    and walks are its own.

    `source` is a folder of weights, of a training, or the name of weights that come with the package. The denoiser
    stands in for every stage that leaves one before `stage`, the eyes for perception and sight. Raises `WeightsError`
    where the source lacks a part or its codec is not the training's own: every part was trained for one codec; and
    `InvalidValueError` for the stages before which nothing is learned, render and codec.
    """
    if stage in ("render", "codec"):
        raise InvalidValueError(f"stage {stage} goes on from nothing; leave --from away")
    place = find(str(source))
    plays = {"denoiser": _DENOISES, "perception": ("perception", "sight")}
    before = recipe.stages[: recipe.stages.index(stage)]
    own, files = folder / "codec.safetensors", {part: place / f"{part}.safetensors" for part in _PARTS}
    for part in ("codec", "perception", "denoiser"):
        read_card(files[part])
    if own.is_file() and sha256_of(own) != sha256_of(files["codec"]):
        raise WeightsError(f"the training in {folder} has a codec other than that of {place}; choose another folder")
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    for part, file in files.items():
        stages = [folder / f"{name}.safetensors" for name in plays.get(part, (part,)) if name in before]
        for target in (folder / "weights" / file.name, *stages):
            if file.is_file() and not target.exists():
                with whole_file(target) as partial:
                    shutil.copyfile(file, partial)


def _prepare(stage: str, recipe: Recipe, preset: Preset, folder: Path, device: str, report: Report) -> None:
    """What is worked out once, and learned from later."""

    def counted(done: int, total: int) -> None:
        report(done, total, {})

    if stage == "render":
        for i, config in enumerate(recipe.data.stores):
            render_clips(folder / f"clips-{i}", config, report=counted)
        return
    stores, (codec, codec_hash) = _stores(recipe, folder), _codec(preset, folder)
    perception, perception_hash = _perception(preset, folder, "sight" if stage in ("unseen", "asked") else "perception")
    if stage == "latents":
        for store in stores:
            encode_latents(store, codec, codec_hash, counted, device)
            predict_depth(store, perception, perception_hash, codec.spatial_stride, counted, device)
        return
    walked_by = recipe.before("sight" if stage in ("unseen", "asked") else _MADE_FOR[stage])
    denoiser, denoiser_hash = _denoiser(preset, folder / f"{walked_by}.safetensors")
    memory = _memory(preset, folder, codec)
    drawer = _drawer(recipe, preset, folder) if stage == "asked" else None
    for store in stores:
        model = WorldModel(preset, codec, perception, denoiser, store.config.size, device, memory=memory, drawer=drawer)
        if stage == "asked":
            assert recipe.dreams is not None
            dreams = recipe.dreams
            find_asked(store, model, _asked(recipe, folder), dreams.clips, dreams.strides, counted)
            continue
        if stage == "walks":
            assert recipe.finetune is not None
            walk_clips(store, model, denoiser_hash, recipe.finetune.clips, recipe.finetune.chunk, counted)
            continue
        plan = recipe.sight
        assert plan is not None
        if stage == "glimpses":
            glimpse_clips(store, model, denoiser_hash, plan.clips, plan.strides, plan.chunks, counted)
        else:
            find_unseen(store, model, perception_hash, denoiser_hash, plan.strides, plan.chunks, counted)


def _learn(
    stage: str,
    recipe: Recipe,
    preset: Preset,
    folder: Path,
    photos: Path | None,
    device: str,
    stop_after_s: float,
    report: Report,
) -> bool:
    """A stage that trains weights; True when it is whole."""
    training, stores = getattr(recipe, stage), _stores(recipe, folder)
    accelerator = _accelerator(device)
    place = _place(device, accelerator)
    torch.manual_seed(0)  # the first weights
    job: Stage
    if stage == "codec":
        with _first_process_first(accelerator):
            pictures = _pictures(stores, recipe, photos, folder)
        job = CodecStage(preset.codec, training.loss, *pictures, device=place)
    elif stage == "perception":
        job = PerceptionStage(_eyes(preset), training.loss, stores, device=place)
    elif stage == "tiny_decoder":
        if preset.tiny_decoder is None:
            raise InvalidValueError(f"preset {recipe.data.preset} has no tiny_decoder to train; add tiny_decoder: {{}}")
        job = TinyDecoderStage(preset.tiny_decoder, training.loss, stores, *_codec(preset, folder), device=place)
    elif stage == "memory":
        codec, codec_hash = _codec(preset, folder)
        reader = make_memory(preset.memory, codec.encode)
        if not isinstance(reader, ResampledMemory):
            raise InvalidValueError(
                f"the memory of preset {recipe.data.preset} has nothing to train; say memory: {{kind: resampled}}, or "
                "leave the stage out"
            )
        eyes_hash = _perception(preset, folder)[1]
        job = ResamplerStage(reader, training.loss, stores, codec, codec_hash, eyes_hash, device=place)
    elif stage == "sight":
        start_eyes, made_by = _perception(preset, folder)[0], folder / f"{recipe.before(stage)}.safetensors"
        job = SightStage(start_eyes, training.loss, stores, sha256_of(made_by), training.strides, device=place)
    elif stage in ("drawer", "dreams"):
        made_by, eyes_hash = folder / f"{recipe.before('sight')}.safetensors", sha256_of(folder / "sight.safetensors")
        start_drawer = (_drawer(recipe, preset, folder), _asked(recipe, folder)) if stage == "dreams" else None
        job = DrawerStage(
            _drawing(recipe, preset), training.loss, stores, eyes_hash, sha256_of(made_by), device=place,
            start=start_drawer,
        )  # fmt: skip
    else:
        codec, codec_hash = _codec(preset, folder)
        _, perception_hash = _perception(preset, folder)
        before = recipe.before(stage)
        start, start_hash = (None, None) if before is None else _denoiser(preset, folder / f"{before}.safetensors")
        memory: Memory
        if stage == "backbone":
            memory = NoMemory()
        else:
            if isinstance(preset.memory, ResampledMemoryConfig) and recipe.memory is None:
                raise InvalidValueError(
                    f"the memory of preset {recipe.data.preset} reads with weights; add memory.yaml to the recipe"
                )
            fresh = (before is None or stage == "branch") and recipe.memory is None  # else it has learned, if it can
            memory = make_memory(preset.memory, codec.encode) if fresh else _memory(preset, folder, codec)
            if isinstance(memory, ResampledMemory):  # which has had a stage of its own
                memory.requires_grad_(False)
        if stage == "lora":
            check_extra("train", "peft")
        job = (InventionStage if stage == "invention" else WorldStage)(
            preset.denoiser, training.loss, memory, stores, codec, codec_hash, perception_hash, device=place,
            name=cast("WorldStageName", stage), start=start, walked_by=start_hash if stage == "finetune" else None,
            lora=training.lora if stage == "lora" else None,
        )  # fmt: skip

    whole = _train(job, training.loop, folder, device, accelerator, stop_after_s, report)
    if whole and (accelerator is None or accelerator.is_main_process) and not _published(folder, stage):
        _publish(folder, stage)
    return whole


def _train(
    job: Stage,
    loop: LoopConfig,
    folder: Path,
    device: str,
    accelerator: Accelerator | None,
    stop_after_s: float,
    report: Report,
) -> bool:
    def tell(step: int, values: dict[str, float]) -> None:
        report(step, loop.steps, values)

    return train(job, loop, folder, _place(device, accelerator), stop_after_s, tell, accelerator)


def _published(folder: Path, stage: str) -> bool:
    """Whether anything was published since the stage's weights were written: a stage that has long been whole and is
    called again must not take back what later ones made."""
    written = (folder / f"{stage}.safetensors").stat().st_mtime_ns
    return any(file.stat().st_mtime_ns > written for file in (folder / "weights").glob("*.safetensors"))


def _publish(folder: Path, stage: str) -> None:
    """Puts a finished stage's weights where `load_world` looks for those of a training."""
    place = folder / "weights"
    place.mkdir(exist_ok=True)
    names = {part: part for part in _PARTS if part != "denoiser"}
    if stage in ("tiny_decoder", "memory"):  # a training that is long finished may get one: all else stays as it is
        names = {stage: stage}
    elif stage in ("sight", "drawer", "dreams"):
        names["perception"] = "sight"
        if stage == "dreams":
            names["drawer"] = stage
    elif stage not in names:
        names["denoiser"] = stage
    for part, name in names.items():
        file = folder / f"{name}.safetensors"
        if file.is_file():
            with whole_file(place / f"{part}.safetensors") as partial:
                shutil.copyfile(file, partial)


def _accelerator(device: str) -> Accelerator | None:
    """What accelerate knows of devices and processes, where it is installed; a device with a number is used as told.

    Precision is each stage's own, by autocast: accelerate's is one for the whole process.
    """
    if ":" in device or find_spec("accelerate") is None:
        return None
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))  # while one process renders, the others wait
    return Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])


def _place(device: str, accelerator: Accelerator | None) -> str:
    return device if accelerator is None else str(accelerator.device)


def _first_process_first(accelerator: Accelerator | None) -> AbstractContextManager[Any]:
    """The first of several processes does it, the others find it done."""
    return nullcontext() if accelerator is None else accelerator.main_process_first()


def _stores(recipe: Recipe, folder: Path) -> list[ClipStore]:
    return [ClipStore(folder / f"clips-{i}") for i in range(len(recipe.data.stores))]


def _codec(preset: Preset, folder: Path) -> tuple[WanCodec, str]:
    path = folder / "codec.safetensors"
    codec = WanCodec(preset.codec).eval().requires_grad_(False)
    load_weights(path, codec, "codec")
    return codec, sha256_of(path)


def _eyes(preset: Preset) -> PerceptionConfig:
    if not isinstance(preset.perception, PerceptionConfig):
        raise InvalidValueError("a preset that sees by outside models has no perception to train")
    return preset.perception


def _perception(preset: Preset, folder: Path, stage: str = "perception") -> tuple[TinyPerception, str]:
    path = folder / f"{stage}.safetensors"
    perception = TinyPerception(_eyes(preset)).eval()
    load_weights(path, perception, "perception")
    return perception, sha256_of(path)


def _denoiser(preset: Preset, path: Path) -> tuple[Denoiser, str]:
    denoiser = Denoiser(preset.denoiser).eval()
    load_weights(path, denoiser, "denoiser", codec_hash=sha256_of(path.parent / "codec.safetensors"))
    return denoiser, sha256_of(path)


def _drawing(recipe: Recipe, preset: Preset) -> DrawerConfig:
    if preset.drawer is None:
        raise InvalidValueError(f"preset {recipe.data.preset} has no drawer; add drawer: {{width: 64}}")
    return preset.drawer


def _drawer(recipe: Recipe, preset: Preset, folder: Path) -> DepthDrawer:
    drawer = DepthDrawer(_drawing(recipe, preset)).eval()
    load_weights(folder / "drawer.safetensors", drawer, "drawer")
    return drawer


def _asked(recipe: Recipe, folder: Path) -> str:
    """The name of what the drawer is asked in the world of all the weights in `folder`."""
    assert recipe.dreams is not None
    parts = ("drawer", str(recipe.before("sight")), "sight", "codec", "memory")
    files = [folder / f"{part}.safetensors" for part in parts]
    return asked_name(recipe.dreams.strides, *(sha256_of(file) for file in files if file.is_file()))


def _memory(preset: Preset, folder: Path, codec: WanCodec) -> Memory:
    memory = make_memory(preset.memory, codec.encode)
    if isinstance(memory, nn.Module):
        codec_hash = sha256_of(folder / "codec.safetensors")
        load_weights(folder / "memory.safetensors", memory, "memory", codec_hash=codec_hash)
    return memory


def _pictures(
    stores: list[ClipStore], recipe: Recipe, photos: Path | None, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Simulator frames and photographs; the simulator's stand in where there are no photographs."""
    rgb = stores[0].array("rgb")
    frames = rgb.reshape(-1, *rgb.shape[2:])
    if photos is None:
        return frames, frames
    cached = folder / "photos.npy"
    if not cached.exists():
        crops = np.stack(list(photo_crops(photos, stores[0].config.size[0], recipe.data.photo_crops, seed=0)))
        if len(crops) <= 64:
            raise ImageError(f"the pictures below {photos} gave {len(crops)} crops, too few to hold 64 out; add some")
        partial = folder / "photos.partial.npy"
        np.save(partial, crops)
        partial.replace(cached)  # a kill must not leave half a file behind
    return frames, np.load(cached, mmap_mode="r")
