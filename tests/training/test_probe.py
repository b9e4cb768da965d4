"""The probe against plain references: autograd with torch's own Adam, a closed form, and itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from datas3_ray.training.probe import Probe, ProbeSettings, fit_probe, load_probe, save_probe


def blobs(rows: int = 240, classes: int = 4, dimensions: int = 12, spread: float = 0.3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    centres = 3 * rng.normal(size=(classes, dimensions))
    return (centres[y] + spread * rng.normal(size=(rows, dimensions))).astype(np.float32), y


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {code}" for code in range(count))


def reference(x: np.ndarray, y: np.ndarray, train: np.ndarray, classes: int, settings: ProbeSettings) -> torch.Tensor:
    """The same training written with autograd, torch.optim and a scaled copy; its final weights."""
    rows = torch.from_numpy(x[train]).double()
    if settings.normalize:
        rows = rows / rows.norm(dim=1, keepdim=True) * x.shape[1] ** 0.5
    if settings.standardize:
        rows = (rows - rows.mean(0)) / rows.std(0, unbiased=False)
    rows = rows.float()
    labels = torch.from_numpy(y[train])
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [
        {"params": [layer.weight], "weight_decay": settings.weight_decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam(groups, lr=settings.lr)
    order = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(rows), generator=order).split(settings.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(rows[batch]), labels[batch]).backward()
            optimizer.step()
    return layer.weight.detach()


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("scaling", [(True, False), (False, True), (True, True), (False, False)])
def test_same_weights_as_autograd_and_torch_adam(weight_decay: float, scaling: tuple[bool, bool]) -> None:
    x, y = blobs(spread=4.0)
    train, validation = np.arange(0, 200), np.arange(200, 240)
    settings = ProbeSettings(batch_size=32, lr=0.01, epochs=4, patience=4, weight_decay=weight_decay, seed=3)
    settings = dataclasses.replace(settings, normalize=scaling[0], standardize=scaling[1])
    seen: list[float] = []
    fit = fit_probe(
        x, y, train, validation, classes=names(4), settings=settings, on_epoch=lambda e: seen.append(e.epoch)
    )
    assert seen == [1, 2, 3, 4]
    expected = reference(x, y, train, 4, dataclasses.replace(settings, epochs=fit.epoch))
    torch.testing.assert_close(fit.probe.weight, expected, rtol=1e-3, atol=1e-4)


def test_separable_data_is_learnt_as_least_squares_learns_it() -> None:
    x, y = blobs()
    train, test = np.arange(0, 160), np.arange(160, 240)
    fit = fit_probe(x, y, train, train, classes=names(4), settings=ProbeSettings(lr=0.05))
    design = np.c_[x, np.ones(len(x))]
    weights = np.linalg.lstsq(design[train], np.eye(4)[y[train]], rcond=None)[0]
    closed_form = (design[test] @ weights).argmax(1)
    assert (closed_form == y[test]).all()
    assert (fit.probe.predict(x[test]) == closed_form).all()


def test_deterministic_and_seeded() -> None:
    x, y = blobs(spread=3.0)
    train, validation = np.arange(0, 200), np.arange(200, 240)

    def weights(seed: int) -> torch.Tensor:
        settings = ProbeSettings(batch_size=16, epochs=3, seed=seed)
        return fit_probe(x, y, train, validation, classes=names(4), settings=settings).probe.weight

    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_rows_that_are_not_used_do_not_matter() -> None:
    x, y = blobs(spread=2.0)
    train, validation = np.arange(0, 120), np.arange(120, 160)
    other_x, other_y = x.copy(), y.copy()
    other_x[160:], other_y[160:] = np.nan, -7
    settings = ProbeSettings(epochs=2)
    one = fit_probe(x, y, train, validation, classes=names(4), settings=settings)
    two = fit_probe(other_x, other_y, train, validation, classes=names(4), settings=settings)
    assert torch.equal(one.probe.weight, two.probe.weight)


def test_read_only_vectors_and_constant_columns() -> None:
    x, y = blobs()
    x[:, 3] = 7.25
    x.setflags(write=False)
    rows = np.arange(len(x))
    fit = fit_probe(x, y, rows, rows, classes=names(4), settings=ProbeSettings(lr=0.05))
    assert float(fit.probe.std[3]) == 1.0
    assert (fit.probe.predict(x) == y).all()


def test_without_standardising_mean_and_std_do_nothing() -> None:
    x, y = blobs()
    rows = np.arange(len(x))
    fit = fit_probe(x, y, rows, rows, classes=names(4), settings=ProbeSettings(normalize=False, lr=0.05))
    assert torch.equal(fit.probe.mean, torch.zeros(12)) and torch.equal(fit.probe.std, torch.ones(12))


def test_patience_stops_and_the_best_epoch_is_kept() -> None:
    # Validation labels contradict training, so that validation is best after the first epoch and worsens from there.
    x, y = blobs(classes=2)
    settings = ProbeSettings(lr=0.01, epochs=50, patience=3)
    train, validation = np.arange(0, 200), np.arange(200, 240)
    flipped = y.copy()
    flipped[validation] = 1 - y[validation]
    fit = fit_probe(x, flipped, train, validation, classes=names(2), settings=settings)
    assert fit.epoch == 1 and len(fit.history) == 4
    once = fit_probe(x, flipped, train, validation, classes=names(2), settings=dataclasses.replace(settings, epochs=1))
    assert torch.equal(fit.probe.weight, once.probe.weight)


def test_batch_larger_than_the_data() -> None:
    x, y = blobs(rows=20)
    rows = np.arange(20)
    fit = fit_probe(x, y, rows, rows, classes=names(4), settings=ProbeSettings(batch_size=1024, epochs=3))
    assert len(fit.history) == 3


@pytest.mark.parametrize(("train", "validation"), [(0, 5), (5, 0)])
def test_nothing_to_learn_from(train: int, validation: int) -> None:
    x, y = blobs(rows=10)
    with pytest.raises(ValueError, match="needs rows to train on and to validate on"):
        fit_probe(x, y, np.arange(train), np.arange(validation), classes=names(4), settings=ProbeSettings())


def test_divergence_is_an_error() -> None:
    x, y = blobs()
    rows = np.arange(len(x))
    with pytest.raises(ValueError, match="a smaller lr may help"):
        fit_probe(x, y, rows, rows, classes=names(4), settings=ProbeSettings(lr=3e37))


def test_an_epoch_whose_validation_loss_is_no_number_is_never_the_best() -> None:
    x = np.array([[1, 0], [0, 1], [1, 0], [3e38, 3e38]], np.float32)
    settings = ProbeSettings(batch_size=2, lr=10.0, epochs=1, normalize=False)
    with pytest.raises(ValueError, match="the validation loss was never finite in 1 epochs"):
        fit_probe(x, np.array([0, 1, 0, 1]), np.arange(2), np.arange(2, 4), classes=("a", "b"), settings=settings)


def test_checkpoint_round_trip_without_pickle(tmp_path: Path) -> None:
    x, y = blobs()
    rows = np.arange(len(x))
    probe = fit_probe(x, y, rows, rows, classes=names(4), settings=ProbeSettings(epochs=2)).probe
    path = str(tmp_path / "probe.pt")
    save_probe(probe, path)
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {"weight", "bias", "mean", "std", "classes", "normalize", "target"}
    again = load_probe(path)
    assert again.classes == probe.classes
    assert torch.equal(again.logits(x), probe.logits(x))


def test_chunked_scores_are_those_of_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    probe = Probe(torch.randn(3, 5), torch.randn(3), torch.randn(5), torch.rand(5) + 0.5, names(3))
    x = rng.normal(size=(50, 5)).astype(np.float32)
    whole = probe.logits(x)
    monkeypatch.setattr("datas3_ray.training.probe.CHUNK_ROWS", 7)
    torch.testing.assert_close(probe.logits(x), whole)
    torch.testing.assert_close(probe.logits(x, torch.tensor([3, 49])), whole[[3, 49]])
    assert probe.predict(x[:0]).shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpu_probe() -> None:
    x, y = blobs(spread=3.0)
    train, validation = np.arange(0, 200), np.arange(200, 240)
    settings = ProbeSettings(epochs=5)
    cpu, cuda = (
        fit_probe(x, y, train, validation, classes=names(4), settings=settings, device=device)
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(cpu.probe.weight, cuda.probe.weight, rtol=1e-3, atol=1e-4)


def test_regression_is_least_squares_in_the_targets_own_unit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    y = 1000 + x @ np.array([100.0, -50, 0, 25, 10, 5]) + rng.normal(size=400)
    train, validation = np.arange(0, 300), np.arange(300, 400)
    settings = ProbeSettings(batch_size=32, lr=0.01, epochs=60, patience=60, normalize=False, metric="mse")
    fit = fit_probe(x, y, train, validation, classes=(), settings=settings)
    design = np.c_[x, np.ones(len(x))]
    closed_form = design @ np.linalg.lstsq(design[train], y[train], rcond=None)[0]
    predicted = fit.probe.predict(x)
    assert predicted.dtype == np.float64
    assert np.abs(predicted - closed_form).max() < 0.01 * y.std()
    assert fit.validation == pytest.approx(np.mean((predicted - y)[validation] ** 2))
    # The loss is that of the scaled target.
    loss = fit.history[fit.epoch - 1].validation_loss
    assert loss == pytest.approx(fit.validation / y[train].var(), rel=1e-3)
    save_probe(fit.probe, str(tmp_path / "probe.pt"))
    assert (load_probe(str(tmp_path / "probe.pt")).predict(x) == predicted).all()


def test_a_regression_keeps_its_best_epoch_of_the_lowest_error() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 40)).astype(np.float32)
    y = x[:, 0] + 3 * rng.normal(size=60)
    settings = ProbeSettings(batch_size=8, lr=0.05, epochs=30, patience=30, normalize=False, metric="mae")
    fit = fit_probe(x, y, np.arange(40), np.arange(40, 60), classes=(), settings=settings)
    assert fit.validation == min(epoch.validation for epoch in fit.history) < fit.history[-1].validation
