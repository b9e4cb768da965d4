"""ultralytics without network and without traces: nothing of it is imported elsewhere but inside :func:`offline`.

It is under the AGPL-3.0 and optional. Left alone it asks name servers whether there is a network, fetches fonts and
weights, installs packages, sends usage statistics, keeps settings in the home and reports to trackers that it finds.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from datas3_ray.errors import Datas3Error, UsageError

WHAT = "model yolov8n"
"""Begins the sentence of an error."""

_ENVIRONMENT = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
_OFF = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "vscode_msg", "openvino_msg")
_FONTS = ("Arial.ttf", "Arial.Unicode.ttf")


def require_ultralytics() -> None:
    """Raise a UsageError where ultralytics is not installed."""
    if "ultralytics" in sys.modules and sys.modules["ultralytics"] is not None:
        return
    if "ultralytics" in sys.modules or find_spec("ultralytics") is None:
        raise UsageError(
            f"{WHAT} needs the package ultralytics, which is under the AGPL-3.0 and therefore not installed with the "
            "rest; if its terms suit you, pip install 'datas3-ray[detection]'."
        )


@contextmanager
def offline() -> Iterator[None]:
    """ultralytics without network, without its settings' integrations, and silent.

    The environment, and how numpy and torch print and save, are afterwards as they were before.

    Raises
    ------
    Datas3Error
        When its folder below ``TMPDIR`` is another user's.
    """
    before = dict(os.environ)
    os.environ.update({"YOLO_CONFIG_DIR": str(_folder()), **_ENVIRONMENT})
    try:
        _import_quietly()
        from ultralytics.utils import LOGGER, SETTINGS
        from ultralytics.utils.events import events

        level, settings, sends = LOGGER.level, dict(SETTINGS), events.enabled
        LOGGER.setLevel("CRITICAL")
        # Past SETTINGS.update, which would write a file: the settings may be the user's own.
        dict.update(SETTINGS, dict.fromkeys(_OFF, False))
        events.enabled = False
        try:
            yield
        finally:
            LOGGER.setLevel(level)
            dict.update(SETTINGS, settings)
            events.enabled = sends
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def undone() -> Iterator[None]:
    """Random generators, the number of threads and what is deterministic are afterwards as they were before."""
    import random

    import torch

    count, python, numbers = torch.get_num_threads(), random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            torch.set_num_threads(count)
            torch.use_deterministic_algorithms(deterministic)
            random.setstate(python)
            np.random.set_state(numbers)


def _import_quietly() -> None:
    import cv2
    import torch

    printing, saving, threads = np.get_printoptions(), torch.save, cv2.getNumThreads()
    torch_printing = vars(torch._tensor_str.PRINT_OPTS).copy()
    import ultralytics.utils  # noqa: F401

    np.set_printoptions(**printing)
    vars(torch._tensor_str.PRINT_OPTS).update(torch_printing)
    torch.save = saving
    cv2.setNumThreads(threads)


def _folder() -> Path:
    """A folder of this user's, with fonts, for what ultralytics would keep in the home."""
    folder = Path(tempfile.gettempdir()) / f"datas3-ultralytics-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
        raise Datas3Error(f"{folder} belongs to another user; let TMPDIR name a folder of your own.")
    inner = folder / "Ultralytics"
    inner.mkdir(exist_ok=True)
    if not all((inner / font).exists() for font in _FONTS):
        import matplotlib

        there = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        for font in _FONTS:  # it would look for these names on the network
            part = inner / f"{font}.{os.getpid()}"
            shutil.copyfile(there, part)
            part.replace(inner / font)
    return folder
