"""What the name and the place of a FishTrack23 sequence tell: programme, site, split and region."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.remote import Options
from datas3_ray.sources.storage import read_file
from datas3_ray.texts import load_yaml

SPLITS = ("train", "test", "sample", "val", "valid", "validation")
"""Names of folders, in any case of letters, that are the split of what is in them."""

_CAMERA = re.compile(r"-cam[0-9]+$", re.IGNORECASE)
_YEAR = re.compile(r"(19|20)[0-9]{2}")
_REGIONS = Path(__file__).with_name("fishtrack_regions.yaml")
_MOST = 1 << 20


def programme_of(name: str) -> str:
    """The first two tokens of a sequence's name; of a second token that begins with a year, the year.

    >>> programme_of("PIFSC-MOUSS-20160914_231502-Cam1"), programme_of("CDFW-20210413_Shasta"), programme_of("lake")
    ('PIFSC-MOUSS', 'CDFW-2021', 'lake')
    """
    first, dash, rest = name.partition("-")
    second = rest.partition("-")[0]
    year = _YEAR.match(second)
    return f"{first}{dash}{year[0] if year else second}"


def site_of(name: str) -> str:
    """A sequence's name without the number of its camera, so that the two of a stereo pair have one site.

    >>> site_of("PIFSC-MOUSS-20160914_231502-Cam1"), site_of("SEFSC-SeaMap-7-Camp")
    ('PIFSC-MOUSS-20160914_231502', 'SEFSC-SeaMap-7-Camp')
    """
    return _CAMERA.sub("", name)


def split_of(folders: list[str]) -> str | None:
    """The split that the last of the folders that is one tells, in lower case.

    >>> split_of(["FishTrack23-Latest", "Train", "SEQ"]), split_of(["mine"])
    ('train', None)
    """
    return next((folder.lower() for folder in reversed(folders) if folder.lower() in SPLITS), None)


def region_of(programme: str, regions: Mapping[str, str]) -> str | None:
    """The region of the longest key that the programme begins with.

    >>> region_of("CDFW-2021", {"CDFW": "lakes", "CDFW-Lake": "deep lakes"}), region_of("NOAA-X", {"CDFW": "lakes"})
    ('lakes', None)
    """
    fitting = [start for start in regions if programme.startswith(start)]
    return regions[max(fitting, key=len)] if fitting else None


def read_regions(uri: str | None = None, storage_options: Options = None) -> dict[str, str]:
    """The map of beginnings of programmes to regions: a YAML file's, by default the package's own.

    Raises UsageError for a file that cannot be read or is no mapping of text to text.

    >>> read_regions()["PIFSC-MOUSS"]
    'pacific'
    """
    place = uri or str(_REGIONS)
    try:
        document = load_yaml(read_file(place, storage_options, _MOST))
    except SampleError as error:
        raise UsageError(f"fishtrack: regions: {error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"fishtrack: regions: {place!r} is not YAML: {' '.join(str(error).split())}.") from None
    sound = isinstance(document, dict) and all(
        isinstance(key, str) and key and isinstance(value, str) for key, value in document.items()
    )
    if not sound or not document:
        raise UsageError(
            f"fishtrack: regions: {place!r} is no mapping of the beginnings of programmes to regions, such as "
            "{PIFSC-MOUSS: pacific}."
        )
    return dict(document)
