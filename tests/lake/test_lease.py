"""The lease: one run fills a table at a time, and a dead one holds nobody up."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import lance
import pytest

from datas3_ray import Lake, retry
from datas3_ray.errors import Datas3Error
from datas3_ray.lake import lease as module
from datas3_ray.lake.lease import Lease, holder
from datas3_ray.lake.storage import dataset_uri, open_dataset

LEDGER = "pool.ledger"


@pytest.fixture
def plain(tmp_path) -> Lake:
    """A lake that needs no Ray."""
    return Lake(tmp_path / "lake")


def change(lake: Lake, **columns: str) -> None:
    """Give the lease's row other values."""
    dataset = open_dataset(dataset_uri(lake.uri, LEDGER))
    assert dataset.update(columns, where="shard = ''")["num_rows_updated"] == 1


def aged(seconds: float) -> str:
    moment = (datetime.now(timezone.utc) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return f"arrow_cast('{moment}', 'Timestamp(Microsecond, Some(\"UTC\"))')"


def test_a_second_run_is_told_who_holds_the_table(plain) -> None:
    assert holder(plain, LEDGER) is None
    with Lease(plain, "pool", LEDGER):
        assert f"process {os.getpid()}" in (holder(plain, LEDGER) or "")
        with pytest.raises(Datas3Error, match=rf"table 'pool' is being filled by process {os.getpid()} on .* s ago"):
            Lease(plain, "pool", LEDGER).__enter__()
    assert holder(plain, LEDGER) is None
    with Lease(plain, "pool", LEDGER):
        pass


def test_a_run_that_fails_lets_go(plain) -> None:
    with pytest.raises(ZeroDivisionError), Lease(plain, "pool", LEDGER):
        raise ZeroDivisionError
    with Lease(plain, "pool", LEDGER):
        pass


def test_a_killed_process_of_this_machine_holds_nobody_up(plain) -> None:
    code = (
        "import sys, os, signal; from datas3_ray import Lake; from datas3_ray.lake.lease import Lease; "
        f"Lease(Lake(sys.argv[1]), 'pool', {LEDGER!r}).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, plain.uri], check=False)
    assert open_dataset(dataset_uri(plain.uri, LEDGER)).count_rows() == 1
    assert holder(plain, LEDGER) is None
    with Lease(plain, "pool", LEDGER):
        assert f"process {os.getpid()}" in (holder(plain, LEDGER) or "")


def test_a_new_process_with_an_old_number_is_not_taken_for_the_holder(plain) -> None:
    with Lease(plain, "pool", LEDGER):
        host, pid, _ = module._me().split(" ")
        change(plain, config=f"'{host} {pid} 1'")
        assert holder(plain, LEDGER) is None


def test_another_machine_is_believed_for_two_minutes(plain) -> None:
    with Lease(plain, "pool", LEDGER) as first:
        change(plain, config="'elsewhere 1 1'")
        with pytest.raises(Datas3Error, match="process 1 on elsewhere"):
            Lease(plain, "pool", LEDGER).__enter__()
        change(plain, created=aged(module.SILENT + 1))
        with Lease(plain, "pool", LEDGER):
            first._lost = False
            first.check()


def test_the_holder_gives_signs_of_life_and_notices_when_it_was_taken_for_dead(plain, monkeypatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    with Lease(plain, "pool", LEDGER) as lease:
        change(plain, created=aged(60))
        deadline = time.monotonic() + 20
        while "sign of life 0 s ago" not in (holder(plain, LEDGER) or "") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "sign of life 0 s ago" in (holder(plain, LEDGER) or "")
        lease.check()
        change(plain, commit="'another'")
        while not lease._lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(Datas3Error, match="another run has taken table 'pool' over"):
            lease.check()
    assert open_dataset(dataset_uri(plain.uri, LEDGER)).count_rows() == 1, "it let go of what is no longer its own"


def _enter(uri: str, barrier, answers) -> None:
    barrier.wait()
    try:
        lease = Lease(Lake(uri), "pool", LEDGER)
        lease.__enter__()
        answers.put("held")
    except Datas3Error:
        answers.put("refused")
    barrier.wait()


def test_of_several_that_try_at_once_one_gets_it(plain) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_enter, args=(plain.uri, barrier, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    told = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert told == ["held", "refused", "refused"]


def test_a_lease_that_cannot_be_written_is_a_sentence_and_holds_nobody_up(plain, monkeypatch) -> None:
    monkeypatch.setattr(retry, "DELAYS", ())
    full = OSError("LanceError(IO): No space left on device (os error 28), writer/structural.rs:254:9")

    def refuse(*args, **more):
        raise full

    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patched, Lease(plain, "pool", LEDGER):
        patched.setattr(lance.LanceDataset, "delete", refuse)
        raise ZeroDivisionError
    assert open_dataset(dataset_uri(plain.uri, LEDGER)).count_rows() == 1, "the row could not be removed"
    assert holder(plain, LEDGER) is None
    with Lease(plain, "pool", LEDGER):
        assert holder(plain, LEDGER)
    with monkeypatch.context() as patched:
        builder = type(open_dataset(dataset_uri(plain.uri, LEDGER)).merge_insert("shard"))
        patched.setattr(builder, "execute", refuse)
        with pytest.raises(Datas3Error, match=r"taking table 'pool' for this run failed.* free some space"):
            Lease(plain, "pool", LEDGER).__enter__()
