"""A small camera-trap world with known ground truth, as WebDataset tar shards of JPEGs, drawn on the spot.

Three regions differ in scenery, in which species live there and in what goes by a species' name: the savanna's wolf is
a painted wolf that looks like the forest's leopard, the forest's elk looks like the tundra's deer. So *which* training
images are chosen decides how good a model is in one region. Cameras fire in bursts of near-duplicates, some cameras'
annotator is careless, and a few files are broken, as in a real archive; the truth of all of it is known.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from datas3_ray.errors import UsageError, in_the_way
from datas3_ray.sources.synthetic_drawing import Coat, Colour, Pose, tint
from datas3_ray.sources.synthetic_fauna import EMPTY, HABITS, STATURE
from datas3_ray.sources.synthetic_scenery import (
    LIGHTS,
    REGIONS,
    Actor,
    Scenery,
    Shot,
    build_scenery,
    extent,
    shoot,
)
from datas3_ray.sources.synthetic_species import SPECIES

GENERATOR = 2  # raised whenever the same World gives other bytes
LABELS = (*SPECIES, EMPTY)
CORRUPT_KINDS = ("truncated", "no bytes", "html", "garbage", "invalid json")

_MANIFEST = "world.json"
_OURS = re.compile(r"shard-\d{5}\.tar(\.part)?|world\.json(\.part)?")  # what an interrupted call can leave
_BURST_SIZES = (0.44, 0.22, 0.14, 0.09, 0.06, 0.05)  # chance of 1, 2, ... 6 frames
_CARELESS = 4  # one camera in so many has a careless annotator
_CARELESS_ODDS = 12.0  # how much likelier an event is mislabelled there
_PLAN, _SITE, _FRAME, _NOISE, _ERROR, _SHUFFLE, _BROKEN = range(7)  # streams of random numbers


@dataclass(frozen=True)
class World:
    """What to generate. Equal worlds give equal bytes (with the same Pillow and numpy).

    ``images`` counts the good ones, ``corrupt`` files come on top; ``size`` is (width, height) in pixels;
    ``mislabelled`` and ``unlabelled`` are shares of the images whose label is wrong or missing; ``sites`` is the number
    of cameras in each region; ``quality`` is the JPEG's.

    Raises ``UsageError`` for a value that makes no world.

    >>> World(images=100, shards=2).sites
    10
    """

    images: int = 2400
    seed: int = 0
    shards: int = 12
    size: tuple[int, int] = (160, 120)
    corrupt: int = 8
    mislabelled: float = 0.03
    unlabelled: float = 0.02
    sites: int = 10
    quality: int = 88

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        least = {"images": 1, "seed": 0, "shards": 1, "corrupt": 0, "sites": 1, "quality": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"World: {name} must be {low} or more, not {getattr(self, name)!r}.")
        if len(self.size) != 2 or min(self.size) < 32:
            raise UsageError(f"World: size must be (width, height) of 32 pixels or more, not {self.size!r}.")
        if min(self.mislabelled, self.unlabelled) < 0 or self.mislabelled + self.unlabelled > 1:
            given = f"{self.mislabelled!r} and {self.unlabelled!r}"
            raise UsageError(f"World: mislabelled and unlabelled must be shares with a sum of at most 1, not {given}.")


@dataclass(frozen=True)
class CorruptFile:
    """A sample that no reader can use: its ``key``, the ``kind`` (one of CORRUPT_KINDS) and its shard's file name."""

    key: str
    kind: str
    shard: str


@dataclass(frozen=True)
class WorldSummary:
    """The truth about a generated world. ``bursts`` counts presses of the trigger, a lone frame being a burst of one;
    ``near_duplicates`` are the frames after the first of each; ``species`` maps region to true label to images."""

    folder: Path
    images: int
    bursts: int
    near_duplicates: int
    mislabelled: int
    unlabelled: int
    corrupt: int
    regions: dict[str, int]
    species: dict[str, dict[str, int]]
    corrupt_files: tuple[CorruptFile, ...]
    shards: tuple[Path, ...]


@dataclass(frozen=True)
class _Event:
    number: int
    region: str
    site: int
    species: str
    light: str
    start: datetime
    frames: int
    label: str | None = None  # what the annotator wrote

    @property
    def site_id(self) -> str:
        return f"{self.region}-{self.site:02d}"

    @property
    def burst_id(self) -> str:
        return f"{self.site_id}-{self.number:05d}"


@dataclass(frozen=True)
class _Item:
    """One sample of a shard: a frame of an event, broken in the way ``corrupt`` says."""

    event: _Event
    frame: int
    corrupt: str | None = None

    @property
    def key(self) -> str:
        return f"{self.event.burst_id}-{self.frame}"


def _random(world: World, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng((world.seed, stream, *numbers))


def _choose(rng: np.random.Generator, odds: dict[str, float]) -> str:
    weights = np.fromiter(odds.values(), float)
    return list(odds)[int(rng.choice(len(odds), p=weights / weights.sum()))]


# -------------------------------------------------------------------------------------------------------------- plan


def _event(world: World, number: int) -> _Event:
    rng = _random(world, _PLAN, number)
    region = REGIONS[number % len(REGIONS)]
    species = _choose(rng, {name: habit.share for name, habit in HABITS[region].items()})
    light = _choose(rng, dict(zip(LIGHTS, HABITS[region][species].hours, strict=True)))
    first, hours = {"day": (7, 10), "dusk": (17.5, 2), "night": (20, 9)}[light]
    seconds = round((rng.integers(366) * 24 + first + hours * rng.random()) * 3600)
    start = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    popular = 1.0 / (1.0 + 0.25 * np.arange(world.sites))  # some cameras see more than others
    site = int(rng.choice(world.sites, p=popular / popular.sum()))
    frames = 1 + int(rng.choice(len(_BURST_SIZES), p=_BURST_SIZES))
    return _Event(number, region, site, species, light, start, frames, species)


def _careless(event: _Event) -> bool:
    return event.site % _CARELESS == 1


def _misread(world: World, event: _Event) -> str:
    others = {name: habit.share for name, habit in HABITS[event.region].items() if name != event.species}
    return _choose(_random(world, _ERROR, 1, event.number), others)


def _annotate(world: World, events: Sequence[_Event]) -> list[_Event]:
    """Give whole bursts a wrong label or none, careless cameras first, up to the world's shares of the images."""
    draws = _random(world, _ERROR, 0).random(len(events))
    odds = [_CARELESS_ODDS if _careless(event) else 1.0 for event in events]
    order = sorted(range(len(events)), key=lambda i: -np.log(draws[i]) / odds[i])
    left = {"wrong": round(world.images * world.mislabelled), "none": round(world.images * world.unlabelled)}
    noted = list(events)
    for i in order:
        event = events[i]
        fault = max(left, key=lambda name: left[name])
        if event.frames <= left[fault]:
            left[fault] -= event.frames
            noted[i] = replace(event, label=_misread(world, event) if fault == "wrong" else None)
    return noted


def _plan(world: World) -> list[list[_Item]]:
    """The items of each shard, in order."""
    events: list[_Event] = []
    left = world.images
    while left:
        event = _event(world, len(events))
        events.append(replace(event, frames=min(event.frames, left)))
        left -= events[-1].frames
    items = [_Item(event, frame) for event in _annotate(world, events) for frame in range(event.frames)]
    order = _random(world, _SHUFFLE).permutation(len(items))
    shards = [[items[i] for i in part] for part in np.array_split(order, world.shards)]
    for number in range(world.corrupt):
        event = _event(world, len(events) + number)
        shard = shards[number * world.shards // world.corrupt]
        place = int(_random(world, _BROKEN, number).integers(len(shard) + 1))
        shard.insert(place, _Item(event, 0, CORRUPT_KINDS[number % len(CORRUPT_KINDS)]))
    return shards


def _summary(world: World, folder: Path, shards: Sequence[Sequence[_Item]]) -> WorldSummary:
    paths = tuple(folder / _shard_name(i) for i in range(world.shards))
    good = [item.event for shard in shards for item in shard if item.corrupt is None]
    bad = [
        CorruptFile(item.key, item.corrupt, path.name)
        for path, shard in zip(paths, shards, strict=True)
        for item in shard
        if item.corrupt is not None
    ]
    bursts = len({event.number for event in good})
    species = {name: Counter(event.species for event in good if event.region == name) for name in REGIONS}
    return WorldSummary(
        folder=folder,
        images=len(good),
        bursts=bursts,
        near_duplicates=len(good) - bursts,
        mislabelled=sum(event.label not in (None, event.species) for event in good),
        unlabelled=sum(event.label is None for event in good),
        corrupt=len(bad),
        regions={name: counts.total() for name, counts in species.items()},
        species={name: dict(sorted(counts.items())) for name, counts in species.items()},
        corrupt_files=tuple(bad),
        shards=paths,
    )


# ------------------------------------------------------------------------------------------------------------ render


def _caption(event: _Event) -> str:
    when = {"day": "by day", "dusk": "at dusk", "night": "at night"}[event.light]
    seen = "empty scene" if event.label == EMPTY else event.label
    of = f" of {'an' if seen[0] in 'aeiou' else 'a'} {seen}" if seen else ""
    return f"camera trap image{of} in the {event.region} {when}"


def _metadata(world: World, item: _Item) -> dict[str, str | None]:
    event = item.event
    pauses = _random(world, _FRAME, event.number, 1).integers(1, 4, len(_BURST_SIZES))
    moment = event.start + timedelta(seconds=int(pauses[: item.frame].sum()))
    return {
        "label": event.label,
        "true_label": event.species,
        "region": event.region,
        "site": event.site_id,
        "timestamp": moment.isoformat(),
        "light": event.light,
        "burst": event.burst_id,
        "caption": _caption(event),
    }


def _actors(world: World, item: _Item, horizon: float) -> tuple[Actor, ...]:
    """The animals of an event as they stand at this frame: each frame of a burst is a small step on from the last."""
    event = item.event
    if event.species == EMPTY:
        return ()
    rng = _random(world, _FRAME, event.number, 0)
    herd = 1 + int(rng.random() < 0.2)
    right, heading = bool(rng.random() < 0.5), rng.uniform(0, 0.003)
    near, x = rng.uniform(0.25, 0.95), rng.uniform(0.28, 0.72)
    habit = HABITS[event.region][event.species]
    eye: Colour = (255, 255, 255) if event.light == "night" else (22, 18, 18)
    coat = Coat(tint(habit.coat, rng.uniform(0.86, 1.12)), eye)
    scale = world.size[0] * STATURE[event.species] * habit.size * rng.uniform(0.88, 1.12)
    actors = []
    for mate in range(herd):
        form = replace(habit.form, crest=0.0) if rng.random() < habit.plain else habit.form
        phase, stride, head = rng.uniform(0, 6.3), rng.uniform(0.2, 1), rng.beta(1.6, 0.9)
        pose = Pose(phase + 0.09 * item.frame, stride, float(np.clip(head + 0.01 * item.frame, 0, 1)), right)
        nearness = near * (1 - 0.25 * mate)
        step = heading * item.frame * (1 if right else -1)
        across = x + step + mate * (0.3 if x < 0.5 else -0.3)
        actors.append(
            Actor(
                habit.shape or event.species,
                form,
                coat,
                pose,
                x=across,
                y=horizon + (1 - horizon) * (0.12 + 0.82 * nearness),
                scale=scale * (0.42 + 0.62 * nearness),
            )
        )
    return tuple(actors)


class _Studio:
    """Renders items of a world, keeping each camera's scenery."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sceneries: dict[tuple[str, int], Scenery] = {}

    def scenery(self, region: str, site: int) -> Scenery:
        if (region, site) not in self._sceneries:
            rng = _random(self.world, _SITE, REGIONS.index(region), site)
            self._sceneries[region, site] = build_scenery(region, self.world.size, rng)
        return self._sceneries[region, site]

    def jpeg(self, item: _Item) -> bytes:
        event, rng = item.event, _random(self.world, _NOISE, item.event.number, item.frame)
        scenery = self.scenery(event.region, event.site)
        weather = _random(self.world, _FRAME, event.number, 2).uniform(0.82, 1.15)
        shot = Shot(event.light, weather * rng.uniform(0.997, 1.003), _actors(self.world, item, scenery.horizon))
        buffer = io.BytesIO()
        shoot(scenery, shot, rng).save(buffer, "JPEG", quality=self.world.quality)
        return buffer.getvalue()

    def boxes(self, item: _Item) -> list[dict[str, str | int]]:
        """Where the animals of a frame are, under their true name; the parts that others hide count."""
        actors = _actors(self.world, item, self.scenery(item.event.region, item.event.site).horizon)
        found = [extent(actor, self.world.size) for actor in actors]
        label = {"label": item.event.species}
        return [{**label, **dict(zip("xywh", place, strict=True))} for place in found if place]

    def members(self, item: _Item) -> dict[str, bytes]:
        """The sample's files by extension, broken where the item says so."""
        metadata = _metadata(self.world, item)
        text = json.dumps({**metadata, "boxes": self.boxes(item)}).encode()
        picture = b"" if item.corrupt == "no bytes" else self.jpeg(item)
        if item.corrupt == "truncated":
            picture = picture[: len(picture) // 2]
        elif item.corrupt == "html":
            picture = b"<!DOCTYPE html><html><title>404 Not Found</title><body>No such image.</body></html>"
        elif item.corrupt == "garbage":
            picture = _random(self.world, _BROKEN, item.event.number, 1).bytes(2048)
        elif item.corrupt == "invalid json":
            text = text[: len(text) // 2]
        return {"jpg": picture, "json": text, "txt": str(metadata["caption"]).encode()}


# ------------------------------------------------------------------------------------------------------------- write


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _write_shard(path: Path, studio: _Studio, items: Sequence[_Item]) -> None:
    """Write one tar; it has its name only when it is whole. Nothing in it depends on the clock or the user."""
    part = path.with_name(path.name + ".part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            for extension, content in studio.members(item).items():
                member = tarfile.TarInfo(f"{item.key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    part.replace(path)


def _write_manifest(folder: Path, world: World, shards: Sequence[Path]) -> None:
    manifest = {
        "generator": GENERATOR,
        "world": asdict(world),
        "shards": {path.name: path.stat().st_size for path in shards},
    }
    part = folder / f"{_MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / _MANIFEST)


def is_complete(folder: Path, world: World) -> bool:
    """Whether the folder holds this world, whole. Raises ``UsageError`` where it holds anything that is not ours."""
    file = in_the_way(folder / _MANIFEST)
    if file is not None:
        raise UsageError(f"Cannot generate a world in {folder}: {file} is a file; name a folder.")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if _MANIFEST not in names:
        strangers = sorted(name for name in names if not _OURS.fullmatch(name))
        if strangers:
            raise UsageError(
                f"Cannot generate a world in {folder}: it holds other files ({strangers[0]!r}); name an empty folder."
            )
        return False
    found = _read_manifest(folder / _MANIFEST)
    wanted = {"generator": GENERATOR, **json.loads(json.dumps(asdict(world)))}
    held = {"generator": found.get("generator"), **found.get("world", {})}
    for name in wanted:
        if held.get(name) != wanted[name]:
            raise UsageError(
                f"The folder {folder} already holds another world ({name} is {held.get(name)!r} there, "
                f"{wanted[name]!r} is asked); name another folder, or delete this one."
            )
    sizes = found.get("shards", {})
    return bool(sizes) and all(name in names and (folder / name).stat().st_size == size for name, size in sizes.items())


def _read_manifest(path: Path) -> dict[str, dict[str, object]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"Cannot read {path} ({error}); delete the folder, or name another.") from error
    return found if isinstance(found, dict) else {}


def generate(folder: str | Path, world: World | None = None) -> WorldSummary:
    """Write ``world`` (default ``World()``) to ``folder`` as shard-00000.tar and on, and return the truth about it.

    A sample is KEY.jpg, KEY.json and KEY.txt (the caption). The JSON has the strings ``label`` (what the annotator
    says; null where nobody looked), ``true_label``, ``region``, ``site``, ``timestamp`` (ISO 8601, UTC), ``light``,
    ``burst`` and ``caption``; a wrong label is wrong in the caption too. Its list ``boxes`` has, for each animal, the
    true ``label`` and ``x``, ``y`` (upper left corner), ``w`` and ``h`` in pixels. A folder that holds this world
    already is left as it is, and one where an earlier call was interrupted is written again.

    Raises ``UsageError`` where the folder holds another world or files that are not a world's.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = generate(folder, World(images=6, shards=2, corrupt=1))
    >>> summary.images, summary.corrupt_files[0].kind, summary.shards[1].name
    (6, 'truncated', 'shard-00001.tar')
    """
    folder, world = Path(folder), world or World()
    plan = _plan(world)
    summary = _summary(world, folder, plan)
    if is_complete(folder, world):
        return summary
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.iterdir():
        if _OURS.fullmatch(leftover.name):
            leftover.unlink()
    studio = _Studio(world)
    for path, items in zip(summary.shards, plan, strict=True):
        _write_shard(path, studio, items)
    _write_manifest(folder, world, summary.shards)
    return summary
