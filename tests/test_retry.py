"""Backoff: what may go away is tried again, what will not is told at once, in one sentence."""

from __future__ import annotations

import pytest

from datas3_ray import retry
from datas3_ray.errors import Datas3Error
from datas3_ray.retry import is_passing, short, with_backoff


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made, none of which took time."""
    made: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


class Failing:
    """Raises the errors in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_a_store_that_fails_for_a_while_is_asked_again_with_growing_pauses(pauses) -> None:
    call = Failing(OSError("Generic S3 error: 503 Service Unavailable"), TimeoutError("no answer"))
    assert with_backoff(call, "the commit") == "answer"
    assert call.calls == 3
    assert pauses == [0.5, 1.0]


def test_it_gives_up_with_the_cause_the_count_and_what_stays(pauses) -> None:
    call = Failing(*[OSError("Internal Server Error, /home/x/rust/lance/src/io.rs:7:1")] * 9)
    with pytest.raises(Datas3Error) as caught:
        with_backoff(call, "the commit to s3://b/pool.lance", after="what was committed before stays")
    assert str(caught.value) == (
        "the commit to s3://b/pool.lance failed after 6 attempts: Internal Server Error; what was committed before "
        "stays; run the same command again when the store answers."
    )
    assert call.calls == 6
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied"), "make it writable for this user"),
        (OSError("LanceError(IO): Read-only file system (os error 30)"), "make it writable for this user"),
        (OSError("Generic S3 error: 403 Forbidden: InvalidAccessKeyId"), "check the credentials"),
        (RuntimeError("Failed to resolve region for bucket 'b'"), "name the store's region: aws_region"),
        (ValueError("schema mismatch"), "schema mismatch."),
    ],
)
def test_what_will_not_go_away_is_told_at_once(pauses, error, says) -> None:
    call = Failing(error)
    with pytest.raises(Datas3Error, match=says):
        with_backoff(call, "writing")
    assert (call.calls, pauses) == (1, [])


def test_a_full_disk_is_given_time_and_then_named(pauses) -> None:
    full = OSError(28, "No space left on device")
    assert with_backoff(Failing(full, full), "writing") == "answer"
    with pytest.raises(Datas3Error, match="free some space and run the same command again"):
        with_backoff(Failing(*[full] * 9), "writing")


def test_our_own_sentences_pass_through(pauses) -> None:
    with pytest.raises(Datas3Error, match="^timed out, as we say$"):
        with_backoff(Failing(Datas3Error("timed out, as we say")), "writing")


def test_a_denial_is_hopeless_even_where_it_speaks_of_a_connection() -> None:
    assert not is_passing(OSError("connection refused: access denied"))
    assert is_passing(ConnectionResetError("reset"))


def test_a_short_error_is_one_line_of_at_most_300_characters() -> None:
    assert short(ValueError("a\n  b")) == "a b"
    assert short(ValueError()) == "ValueError"
    assert len(short(ValueError("x" * 1000))) == 300
