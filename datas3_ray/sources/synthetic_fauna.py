"""Who lives in which region of the synthetic world: how often, when, how large, and what it looks like there."""

from __future__ import annotations

from dataclasses import dataclass

from datas3_ray.sources.synthetic_drawing import Colour, Form

EMPTY = "empty"  # the species of an event without an animal


@dataclass(frozen=True)
class Habit:
    """A species in one region: its share of the events, its colour and form there, when it is about (LIGHTS' odds), its
    size (1 is the species'), and the share of its animals that go without its crest (does, lionesses)."""

    share: float
    coat: Colour = (0, 0, 0)
    form: Form = Form()
    hours: tuple[float, float, float] = (0.35, 0.2, 0.45)
    size: float = 1.0
    plain: float = 0.0
    shape: str = ""  # drawn as this species


_NIGHT, _DUSK, _DAY = (0.08, 0.12, 0.8), (0.2, 0.4, 0.4), (0.65, 0.15, 0.2)
HABITS: dict[str, dict[str, Habit]] = {
    "savanna": {
        "deer": Habit(0.14, (196, 140, 84), Form(crest=1.2), _DAY, plain=0.3),  # a kudu
        "elk": Habit(0.11, (206, 160, 104), Form(leg=1.05, crest=0.55), _NIGHT, plain=0.3),  # an eland
        "zebra": Habit(0.12, (228, 222, 208)),
        "boar": Habit(0.12, (88, 72, 62), Form(leg=1.3, depth=0.9, crest=1.2), _NIGHT, size=0.9),  # a warthog
        "elephant": Habit(0.09, (138, 124, 112)),
        "lion": Habit(0.09, (204, 160, 98), hours=_NIGHT, plain=0.6),
        "giraffe": Habit(0.07, (226, 192, 134)),
        "wolf": Habit(0.07, (112, 80, 52), Form(tail=0.8, spots=1.5), _DUSK, shape="leopard"),  # a painted wolf
        "bird": Habit(0.06, (66, 60, 62), Form(leg=1.3, neck=1.25), _DAY, size=1.15),  # an ostrich
        "hare": Habit(0.06, (190, 152, 100), Form(crest=1.15), _DAY),
        EMPTY: Habit(0.07),
    },
    "forest": {
        "deer": Habit(0.14, (104, 70, 50), Form(leg=0.9, crest=0.5), _NIGHT, plain=0.5, shape="elk"),  # a brocket
        "elk": Habit(0.12, (122, 80, 52), Form(crest=1.25), _DAY, shape="deer"),  # a wapiti
        "boar": Habit(0.15, (170, 108, 64), Form(head=0.8, leg=1.2, depth=1.05, crest=0.25), _DAY),  # a red river hog
        "bear": Habit(0.11, (66, 52, 44), Form(head=1.45, leg=0.9, depth=0.92), _NIGHT, size=0.9),  # a sloth bear
        "leopard": Habit(0.11, (116, 84, 56), Form(spots=1.4), _DUSK),
        "wolf": Habit(0.09, (172, 118, 72), Form(leg=0.92), _DAY),  # a dhole
        "bird": Habit(0.08, (150, 84, 46), Form(leg=0.55, neck=0.6, tail=1.7), _DUSK),  # a pheasant
        "hare": Habit(0.07, (90, 76, 62), Form(crest=0.8), _NIGHT),
        "elephant": Habit(0.04, (98, 84, 76), Form(leg=0.9)),
        EMPTY: Habit(0.09),
    },
    "tundra": {
        "deer": Habit(0.15, (124, 100, 82), Form(neck=0.9, crest=1.3), _DAY),  # a reindeer
        "elk": Habit(0.12, (96, 80, 70), Form(leg=1.05, crest=0.5), _NIGHT, plain=0.5),  # a moose
        "hare": Habit(0.12, (246, 246, 250), Form(crest=0.65), _DUSK, size=1.15),
        "wolf": Habit(0.12, (206, 200, 190), Form(leg=0.9, depth=1.1, tail=1.2), _NIGHT, size=1.1),
        "bird": Habit(0.10, (176, 152, 128), Form(leg=0.5, neck=0.5, tail=0.7), _DAY),  # a ptarmigan
        "bear": Habit(0.11, (222, 206, 172), Form(head=0.9, leg=1.15), _DAY),
        "boar": Habit(0.09, (84, 76, 72), Form(head=1.1, crest=1.0), _NIGHT),
        "leopard": Habit(0.09, (186, 158, 130), Form(head=0.8, tail=1.2, spots=0.8), _DAY, shape="wolf"),
        EMPTY: Habit(0.10),
    },
}
STATURE = {  # trunk's length on screen in front of the camera, as a share of the frame's width
    "elephant": 0.42, "zebra": 0.34, "giraffe": 0.28, "lion": 0.35, "leopard": 0.32, "deer": 0.32, "elk": 0.35,
    "boar": 0.32, "bear": 0.36, "wolf": 0.32, "hare": 0.23, "bird": 0.24,
}  # fmt: skip
