"""Retrieval, zero-shot classification and the contrastive loss: known answers, and brute force beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from datas3_ray.training import clip_scoring
from datas3_ray.training.clip_scoring import (
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    class_vectors,
    contrastive_losses,
    held_out_loss,
    retrieval_figures,
    retrieve,
    with_figures,
    zero_shot,
)


def unit(count: int, size: int, seed: int) -> torch.Tensor:
    return normalize(
        torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def slow_losses(images: np.ndarray, texts: np.ndarray, scale: float) -> list[float]:
    """By the definition, one pair after another."""
    losses = []
    for i in range(len(images)):
        own = scale * float(images[i] @ texts[i])
        to_texts = math.log(sum(math.exp(scale * float(images[i] @ text)) for text in texts)) - own
        to_images = math.log(sum(math.exp(scale * float(image @ texts[i])) for image in images)) - own
        losses.append((to_texts + to_images) / 2)
    return losses


@pytest.mark.parametrize(("count", "scale"), [(1, 10.0), (2, 1.0), (7, 14.3), (32, 100.0)])
def test_the_loss_is_its_definition(count: int, scale: float) -> None:
    images, texts = unit(count, 5, 1), unit(count, 5, 2)
    expected = slow_losses(images.numpy(), texts.numpy(), scale)
    assert np.allclose(contrastive_losses(images, texts, scale).numpy(), expected, atol=1e-10)
    assert held_out_loss(images, texts, scale) == pytest.approx(np.mean(expected))


def test_losses_that_are_known() -> None:
    # All alike: every answer is as good as any other.
    same = torch.ones(8, 1)
    assert contrastive_losses(same, same, 5.0).tolist() == pytest.approx([math.log(8)] * 8)
    # Orthogonal pairs: the right answer has weight e^s against one for each other.
    known = math.log(math.exp(3.0) + 3) - 3.0
    assert contrastive_losses(torch.eye(4), torch.eye(4), 3.0).tolist() == pytest.approx([known] * 4)
    assert contrastive_losses(torch.ones(1, 1), torch.ones(1, 1), 9.0).tolist() == [0.0]


def test_the_held_out_loss_takes_groups_of_one_size() -> None:
    images, texts = unit(10, 4, 3), unit(10, 4, 4)
    parts = [slow_losses(images[i:j].numpy(), texts[i:j].numpy(), 7.0) for i, j in ((0, 4), (4, 7), (7, 10))]
    assert held_out_loss(images, texts, 7.0, most=4) == pytest.approx(
        np.mean([loss for part in parts for loss in part])
    )


def slow_ranks(images: np.ndarray, texts: np.ndarray, text_of: np.ndarray) -> tuple[list[int], list[int]]:
    similarity = images @ texts.T
    to_text = []
    for i, right in enumerate(text_of):
        to_text.append(sum(similarity[i, t] >= similarity[i, right] for t in range(len(texts)) if t != right))
    to_image = []
    for t in range(len(texts)):
        best = max(similarity[i, t] for i in range(len(images)) if text_of[i] == t)
        to_image.append(sum(similarity[i, t] >= best for i in range(len(images)) if text_of[i] != t))
    return to_text, to_image


@pytest.mark.parametrize("cells", [1, 40, 1 << 24])
def test_retrieval_against_brute_force(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(clip_scoring, "_MOST_CELLS", cells)
    text_of = np.r_[np.arange(9), np.random.default_rng(0).integers(0, 9, 21)]
    images, texts = unit(30, 6, 5), unit(9, 6, 6)
    found = retrieve(images, texts, text_of)
    to_text, to_image = slow_ranks(images.numpy(), texts.numpy(), text_of)
    assert found.image_to_text.tolist() == to_text and found.text_to_image.tolist() == to_image
    for k in (1, 5, 10):
        assert found.recall(IMAGE_TO_TEXT, k) == np.mean(np.array(to_text) < k)
        assert found.recall(TEXT_TO_IMAGE, k) == np.mean(np.array(to_image) < k)
    assert 0 < found.recall(IMAGE_TO_TEXT, 5) < 1 and found.recall(IMAGE_TO_TEXT, 10) == 1  # of nine texts


def test_a_perfect_model_and_one_that_knows_nothing() -> None:
    # Two images have text 0: either of them is a right answer to it.
    text_of = np.array([0, 1, 2, 0])
    found = retrieve(torch.eye(3)[text_of], torch.eye(3), text_of)
    assert found.image_to_text.tolist() == [0, 0, 0, 0] and found.text_to_image.tolist() == [0, 0, 0]
    # One vector for everything is a tie with every wrong answer, and finds nothing.
    same = retrieve(torch.ones(4, 2), torch.ones(3, 2), text_of)
    assert same.recall(IMAGE_TO_TEXT) == 0 and same.recall(TEXT_TO_IMAGE) == 0
    assert same.image_to_text.tolist() == [2] * 4 and same.text_to_image.tolist() == [2, 3, 3]
    swapped = retrieve(torch.eye(2), torch.eye(2).flip(0), np.array([0, 1]))
    assert swapped.recall(IMAGE_TO_TEXT, 1) == 0 and swapped.recall(IMAGE_TO_TEXT, 5) == 1


def test_vectors_that_are_not_numbers_find_nothing() -> None:
    found = retrieve(torch.full((3, 2), torch.nan), torch.eye(2), np.array([0, 1, 0]))
    assert found.recall(IMAGE_TO_TEXT) == 0 and found.recall(TEXT_TO_IMAGE) == 0


def test_zero_shot() -> None:
    prompts = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0], [0.0, 1.0]]])
    classes = class_vectors(prompts)
    # The mean of (1, 0) and (0.6, 0.8) points along (2, 1).
    assert torch.allclose(classes, torch.tensor([[2.0, 1.0], [0.0, 5**0.5]]) / 5**0.5)
    assert zero_shot(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), classes).tolist() == [0, 1, 0]


def test_a_model_that_gives_every_class_one_vector_knows_none() -> None:
    images, same = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    assert zero_shot(images, same.expand(3, 2)).tolist() == [-1, -1]
    assert zero_shot(images, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist() == [-1, 1]
    assert zero_shot(images * math.nan, torch.eye(2)).tolist() == [-1, -1]


def test_figures_have_every_metric_with_its_interval() -> None:
    text_of = np.arange(40)
    images = torch.eye(40)
    images[:10] = images[:10].roll(1, 0)  # these ten are given each other's
    scores = retrieval_figures(retrieve(images, torch.eye(40), text_of))
    whole = with_figures(TEXT_TO_IMAGE, scores)
    assert whole.score == 0.75 and whole.interval is not None and 0.5 < whole.interval[0] < 0.75 < whole.interval[1] < 1
    assert set(whole.figures) == {
        "text_to_image_recall@5",
        "text_to_image_recall@10",
        "image_to_text_recall",
        "image_to_text_recall_low",
        "image_to_text_recall_high",
        "image_to_text_recall@5",
        "image_to_text_recall@10",
    }
    low, high = whole.figures["image_to_text_recall_low"], whole.figures["image_to_text_recall_high"]
    assert low < whole.figures["image_to_text_recall"] == 0.75 < high
