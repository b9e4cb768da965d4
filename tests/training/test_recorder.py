"""The recorder: what goes in comes out, whoever writes it and in whatever order, and scores itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.kernels.training_scores import HARDEST, aum, el2n
from datas3_ray.training import recorder as module
from datas3_ray.training.recorder import Record, Recorder, has_record, read_record

CLASSES = ("ant", "bee", "cow")


def history(epochs: int = 5, rows: int = 50) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(epochs, rows, 3))).astype(np.float32)
    return logits, rng.integers(0, 3, rows), pa.array([f"r{i:03}" for i in range(rows)])


def filled(folder: Path, dtype: str = "float32") -> Record:
    logits, labels, ids = history()
    recorder = Recorder(folder, ids, labels, CLASSES, epochs=5, dtype=dtype)
    for epoch in range(5):
        # As an image model would: shuffled batches, the last one partial.
        for rows in np.split(np.random.default_rng(epoch).permutation(50), [16, 32, 48]):
            recorder.record(epoch + 1, rows, logits[epoch, rows])
    recorder.flush()
    return read_record(folder)


def test_what_goes_in_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 20)
    logits, labels, ids = history()
    record = filled(tmp_path / "record")
    assert np.array_equal(record.logits, logits)
    assert record.ids.equals(ids)
    assert record.labels.tolist() == labels.tolist()
    assert (record.classes, record.epochs, record.complete) == (CLASSES, 5, True)
    blocks = list(record.blocks(2))
    assert [(rows.start, rows.stop) for rows, _ in blocks] == [(0, 20), (20, 40), (40, 50)]
    assert np.array_equal(np.concatenate([values for _, values in blocks]), logits[1])
    # Mapped: a page is read when it is looked at.
    assert isinstance(record.logits, np.memmap)


def test_a_record_scores_itself(tmp_path: Path) -> None:
    logits, labels, _ = history()
    norms = np.random.default_rng(1).uniform(0, 3, 50)
    exact = filled(tmp_path / "exact").scores(list(HARDEST), norms=norms, window=4)
    assert exact["aum"] == pytest.approx(aum(logits, labels))
    assert exact["el2n"] == pytest.approx(el2n(logits, labels))
    half = filled(tmp_path / "half", "float16").scores(list(HARDEST), norms=norms, window=4)
    for name in HARDEST:
        assert half[name] == pytest.approx(exact[name], rel=1e-2, abs=1e-2), name
    again = read_record(tmp_path / "exact").scores(["el2n"], early=1)["el2n"]
    assert again == pytest.approx(el2n(logits[:1], labels))


def test_float16_keeps_large_logits_and_takes_half_the_room(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", pa.array(["a"]), [2], CLASSES, epochs=1)
    recorder.record(1, slice(0, 1), [[1e5 + 2, 1e5 + 1, -1e9]])
    assert read_record(tmp_path / "r").logits[0, 0].tolist() == [0.0, -1.0, -65504.0]
    filled(tmp_path / "half", "float16")
    assert (tmp_path / "half" / "logits.npy").stat().st_size == 128 + 5 * 50 * 3 * 2


def test_several_processes_write_one_record(tmp_path: Path) -> None:
    logits, labels, ids = history()
    Recorder(tmp_path / "r", ids, labels, CLASSES, epochs=5, dtype="float32").record(1, slice(0, 20), logits[0, :20])
    assert read_record(tmp_path / "r").epochs == 0
    np.save(tmp_path / "logits.npy", logits)
    code = (
        "import sys, numpy as np; from datas3_ray.training.recorder import Recorder; "
        "r = Recorder.attach(sys.argv[1]); z = np.load(sys.argv[2]); "
        "r.record(1, slice(20, 50), z[0, 20:]); [r.record(e + 1, slice(0, 50), z[e]) for e in (1, 3)]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r"), str(tmp_path / "logits.npy")], check=True)
    record = read_record(tmp_path / "r")
    assert np.array_equal(record.logits[:2], logits[:2])
    # The third epoch is missing, so the fourth counts for nothing.
    assert (record.epochs, record.complete) == (2, False)
    assert record.scores(["aum"])["aum"] == pytest.approx(aum(logits[:2], labels))
    with pytest.raises(ValueError, match=r"epoch must be in 1\.\.2, not 4"):
        list(record.blocks(4))


def test_a_record_cut_short_is_begun_anew_and_a_whole_one_is_not(tmp_path: Path) -> None:
    logits, labels, ids = history()
    Recorder(tmp_path / "r", ids, labels, CLASSES, epochs=5).record(1, slice(0, 50), logits[0])
    assert not has_record(tmp_path / "r")
    assert not has_record(tmp_path / "none")
    filled(tmp_path / "r")
    assert has_record(tmp_path / "r")
    with pytest.raises(UsageError, match="holds a whole record already"):
        Recorder(tmp_path / "r", ids, labels, CLASSES, epochs=5)
    Recorder(tmp_path / "r", ids, labels, CLASSES, epochs=2, replace=True)
    assert read_record(tmp_path / "r").epochs == 0


def test_what_cannot_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, labels, ids = history()
    with pytest.raises(UsageError, match="no record in"):
        read_record(tmp_path)
    with pytest.raises(UsageError, match="float16 or float32, not as 'int8'"):
        Recorder(tmp_path / "r", ids, labels, CLASSES, epochs=1, dtype="int8")
    with pytest.raises(UsageError, match="got 0 epochs, 50 rows and 3 classes"):
        Recorder(tmp_path / "r", ids, labels, CLASSES, epochs=0)
    with pytest.raises(UsageError, match=r"label in 0\.\.1 for each row, got 50 labels in 0\.\.2"):
        Recorder(tmp_path / "r", ids, labels, CLASSES[:2], epochs=1)
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds something else \('photo\.jpg'\)"):
        Recorder(tmp_path, ids, labels, CLASSES, epochs=1)
    recorder = Recorder(tmp_path / "r", ids, labels, CLASSES, epochs=1)
    with pytest.raises(ValueError, match=r"epoch must be in 1\.\.1, not 2"):
        recorder.record(2, slice(0, 1), [[0.0] * 3])
    with pytest.raises(ValueError, match=r"shape \(1, 2\) do not fit 1 rows of 3 classes"):
        recorder.record(1, slice(0, 1), [[0.0] * 2])
    with pytest.raises(Datas3Error, match="not finite after epoch 1; lower the learning rate"):
        recorder.record(1, slice(0, 1), [[0.0, np.inf, 0.0]])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match=r"takes 0\.7 GB, and the disk"):
        Recorder(tmp_path / "large", ids, labels, CLASSES, epochs=2_000_000)
