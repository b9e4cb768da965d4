"""The mathematics of image-text models: the contrastive loss, retrieval and zero-shot classification by prompts.

Vectors are of unit length throughout, so that a product of two is their cosine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datas3_ray.training.contract import TestScore
from datas3_ray.training.scoring import interval

if TYPE_CHECKING:
    import torch

IMAGE_TO_TEXT, TEXT_TO_IMAGE, ZERO_SHOT = "image_to_text_recall", "text_to_image_recall", "zero_shot_accuracy"
LOSS_ROWS = 1024
"""Held-out rows whose contrastive loss is taken together, whatever the batches of training."""

_MOST_CELLS = 1 << 24  # similarities in memory at a time


def contrastive_losses(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Each pair's contrastive loss among all pairs, in nats, (n,): the mean over the two directions.

    Parameters
    ----------
    images, texts : torch.Tensor of shape (n, d)
        Row i of the one belongs to row i of the other.
    scale : float
        What similarities are multiplied by.

    Examples
    --------
    >>> import torch
    >>> same = torch.ones(2, 1)
    >>> contrastive_losses(same, same, 1.0).tolist() == [torch.log(torch.tensor(2.0)).item()] * 2
    True
    """
    from torch import arange
    from torch.nn.functional import cross_entropy

    logits = scale * images @ texts.T
    own = arange(len(logits), device=logits.device)
    there, back = (cross_entropy(each, own, reduction="none") for each in (logits, logits.T))
    return (there + back) / 2


def held_out_loss(images: torch.Tensor, texts: torch.Tensor, scale: float, most: int = LOSS_ROWS) -> float:
    """The mean contrastive loss of n pairs, in groups of equal size and at most ``most`` pairs in their order.

    So the figure is that of the model, and not of the batch size it was trained with.
    """
    groups = np.array_split(np.arange(len(images)), -(-len(images) // most))
    total = 0.0
    for rows in groups:
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        total += float(contrastive_losses(images[part], texts[part], scale).double().sum())
    return total / len(images)


@dataclass(frozen=True)
class Retrieval:
    """How many wrong answers are ranked before the right one: for each of n images, and each of m texts, int64.

    A wrong answer as similar as the right one counts as before it, so a model that gives everything one vector finds
    nothing. A text has several right images where several have that caption; the most similar of them counts.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray

    def hits(self, metric: str, k: int = 1) -> np.ndarray:
        """Which images, or texts, have a right answer among the first ``k``, bool."""
        ranks = self.image_to_text if metric == IMAGE_TO_TEXT else self.text_to_image
        return ranks < k

    def recall(self, metric: str, k: int = 1) -> float:
        """Share of the images, or of the texts, with a right answer among the first ``k``."""
        return float(self.hits(metric, k).mean())


def retrieve(images: torch.Tensor, texts: torch.Tensor, text_of: np.ndarray) -> Retrieval:
    """Find every image's text among the texts, and every text's image among the images.

    Parameters
    ----------
    images : torch.Tensor of shape (n, d)
    texts : torch.Tensor of shape (m, d)
        Different texts.
    text_of : ndarray of shape (n,), int64
        Each image's text. Every text has an image.

    Examples
    --------
    >>> import torch
    >>> found = retrieve(torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]]), torch.eye(2), np.array([0, 1, 0]))
    >>> found.image_to_text.tolist(), found.text_to_image.tolist()
    ([0, 0, 1], [0, 0])
    """
    import torch

    right = torch.from_numpy(text_of).to(images.device)
    image_ranks, text_ranks = [], []
    for start, block in _blocks(images, len(texts)):
        similarity = block @ texts.T
        own = similarity.gather(1, right[start : start + len(block), None])
        image_ranks.append((~(similarity < own)).sum(1) - 1)
    for start, block in _blocks(texts, len(images)):
        similarity = block @ images.T
        mine = right[None, :] == torch.arange(start, start + len(block), device=right.device)[:, None]
        own = similarity.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
        text_ranks.append((~(similarity < own) & ~mine).sum(1))
    return Retrieval(torch.cat(image_ranks).cpu().numpy(), torch.cat(text_ranks).cpu().numpy())


def class_vectors(prompts: torch.Tensor) -> torch.Tensor:
    """Vectors of c classes' p prompts each, (c, p, d), as one of unit length a class (c, d): their mean's direction."""
    from torch.nn.functional import normalize

    return normalize(prompts.mean(1), dim=-1)


def zero_shot(images: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
    """The most similar of the classes' vectors (c, d) to each image (n, d): its code, int64 (n,); -1 where some tie.

    >>> import torch
    >>> zero_shot(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).tolist()
    [0, -1]
    """
    import torch

    found = []
    for _, block in _blocks(images, len(classes)):
        similarity = block @ classes.T
        best, code = similarity.max(1)
        found.append(code.masked_fill((similarity == best[:, None]).sum(1) != 1, -1))
    return torch.cat(found).cpu().numpy()


def retrieval_figures(found: Retrieval) -> dict[str, TestScore]:
    """Recall in both directions: at 1 as the score with its interval, at 5 and 10 as figures."""
    scores = {}
    for metric in (IMAGE_TO_TEXT, TEXT_TO_IMAGE):
        hits = found.hits(metric)
        figures = {f"{metric}@{k}": found.recall(metric, k) for k in (5, 10)}
        scores[metric] = TestScore(float(hits.mean()), interval(hits, np.ones_like(hits), "accuracy"), figures=figures)
    return scores


def with_figures(metric: str, scores: dict[str, TestScore]) -> TestScore:
    """The score by ``metric``, with the other metrics' scores and the ends of their intervals among its figures.

    >>> whole = with_figures("a", {"a": TestScore(0.5), "b": TestScore(0.25, (0.1, 0.4), figures={"b@5": 1.0})})
    >>> whole.score, whole.figures
    (0.5, {'b': 0.25, 'b_low': 0.1, 'b_high': 0.4, 'b@5': 1.0})
    """
    figures = dict(scores[metric].figures)
    for name, other in scores.items():
        if name == metric:
            continue
        figures[name] = other.score
        if other.interval is not None:
            figures[f"{name}_low"], figures[f"{name}_high"] = other.interval
        figures.update(other.figures)
    return replace(scores[metric], figures=figures)


def _blocks(rows: torch.Tensor, columns: int) -> list[tuple[int, torch.Tensor]]:
    """Rows in parts whose similarities to so many others fit in memory, each with its first row's place."""
    size = max(1, _MOST_CELLS // max(columns, 1))
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]
