"""One Ray session for the whole suite, and lakes in temporary folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with 2 CPUs in a temporary folder of its own, or the cluster that DATAS3_TEST_RAY_ADDRESS names."""
    import logging

    import ray

    from datas3_ray.runtime import prepare_environment, quiet_ray_data

    prepare_environment()
    address = os.environ.get("DATAS3_TEST_RAY_ADDRESS")
    # Ray's socket paths must be short, so the folder is not below pytest's own.
    with tempfile.TemporaryDirectory(prefix="d3ray") as folder:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=1 << 30,
                _temp_dir=folder,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        quiet_ray_data()
        yield
        ray.shutdown()


@pytest.fixture
def lake(tmp_path: Path, ray_session: None):
    """An empty lake."""
    from datas3_ray import Lake

    return Lake(tmp_path / "lake")


def shared_data() -> Path | None:
    """The folder of real images beside the checkout, or the one DATAS3_SHARED_DATA names; None where there is none."""
    named = os.environ.get("DATAS3_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if (folder / "emoji-google").is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it are skipped with the reason where it is absent."""
    folder = shared_data()
    if folder is None:
        pytest.skip("no folder of real images: put it at ../shared/data or name it in DATAS3_SHARED_DATA")
    return folder


def vector_rows(ids: list[str], vectors, column: str = "vec", **columns):
    """An Arrow table with ids, a searchable vector column and more."""
    import numpy as np
    import pyarrow as pa

    matrix = np.ascontiguousarray(vectors, np.float32)
    array = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
    return pa.table({"id": pa.array(ids, pa.string()), **columns, column: array})


@pytest.fixture
def make_pool():
    """``make_pool(lake, name, ids, vectors, fragments=3, **columns)``: a table in that many fragments."""

    def make(lake, name, ids, vectors, fragments=1, **columns):
        import numpy as np

        rows = vector_rows(ids, vectors, **columns)
        for piece in np.array_split(np.arange(len(ids)), fragments):
            if len(piece):
                lake.add(name, rows.slice(int(piece[0]), len(piece)))
        return lake.table(name)

    return make


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """An S3 server on loopback with one bucket; see tests/s3_server.py."""
    import logging

    from s3_server import S3Server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server()
    yield server
    server.stop()
