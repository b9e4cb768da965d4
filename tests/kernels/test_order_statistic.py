"""The x-th largest cosine: that of exact cosines, whatever was skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datas3_ray.kernels import similarity
from datas3_ray.kernels.order_statistic import SPARSE, OrderStatistic
from datas3_ray.kernels.screen import PATIENCE
from datas3_ray.kernels.similarity import top_order_statistic


def unit(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def around(n: int, d: int, seed: int, spread: float = 2.0, offset: float = 0.0) -> torch.Tensor:
    """Rows around eight centres, all of them shifted towards one direction or away from it."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(8, d))
    rows = centres[rng.integers(0, 8, n)] + spread * rng.normal(size=(n, d))
    rows[:, 0] += offset
    return unit(rows)


def queries(kind: str, m: int, d: int) -> torch.Tensor:
    if kind == "copies":
        return around(m // 4, d, 1).repeat(4, 1)
    if kind == "closer":
        base = around(m, d, 1).numpy()[np.arange(m) % 6].astype(np.float64)
        return unit(base + 3e-6 * np.random.default_rng(2).normal(size=(m, d)))
    return around(m, d, 1, offset={"apart": 0.0, "alike": 30.0, "opposite": -30.0}[kind])


def brute(rows: torch.Tensor, right: torch.Tensor, x: int) -> list[int]:
    keys = np.sort(np.round(rows.double().numpy() @ right.double().numpy().T * 1e6), axis=1)
    return [int(key) for key in keys[:, len(right) - x]]


@pytest.mark.parametrize("kind", ["apart", "copies", "closer", "alike", "opposite"])
@pytest.mark.parametrize("screened", [True, False])
@pytest.mark.parametrize("x", [1, 2, 10, 49, 50, 200])
def test_is_that_of_exact_cosines(kind: str, screened: bool, x: int) -> None:
    rows, right = around(150, 48, 5, offset=30.0 if kind in ("alike", "opposite") else 0.0), queries(kind, 200, 48)
    kth = OrderStatistic(right, x, 64, screened=screened)
    assert np.concatenate([kth.of(part) for part in rows.split(64)]).tolist() == brute(rows, right, x)


def test_bfloat16_numbers_settle_what_is_apart_and_give_up_on_what_is_not() -> None:
    rows, right = around(1000, 256, 5), around(400, 256, 1)
    kth = OrderStatistic(right, 5, 64, screened=True)
    assert np.concatenate([kth.of(part) for part in rows.split(64)]).tolist() == brute(rows, right, 5)
    assert kth.screen is not None and kth.screen.tiles == 16 and kth.screen.crowded == 0
    # Nothing positive: tried a few times, and not any more.
    away = OrderStatistic(-rows[:1].repeat(400, 1) + 1e-3 * right, 5, 16, screened=True)
    same = rows[:1].repeat(16, 1)
    for _ in range(PATIENCE + 3):
        assert (away.of(same) < 0).all()
    assert away.screen is not None and away.screen.tiles == away.screen.crowded == PATIENCE


def test_a_statistic_beyond_the_groups_of_columns_is_not_screened() -> None:
    right = around(SPARSE * 3, 16, 1)
    assert OrderStatistic(right, 3, 8, screened=True).screen is not None
    assert OrderStatistic(right, 4, 8, screened=True).screen is None


def test_rows_are_the_same_with_and_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, right = 3 * around(600, 64, 6).numpy(), around(300, 64, 7).numpy()
    monkeypatch.setattr(similarity, "fast_units", lambda: None)
    plain = top_order_statistic(rows, right, 10)
    monkeypatch.setattr(similarity, "fast_units", lambda: "bfloat16")
    assert (top_order_statistic(rows, right, 10) == plain).all()
    # Whatever the rows are batched with.
    monkeypatch.setattr(similarity, "SCREENED", 1)
    assert (top_order_statistic(rows[40:51], right, 10) == plain[40:51]).all()
