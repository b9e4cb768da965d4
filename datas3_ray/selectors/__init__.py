"""One file a method, all on one contract. The registry is what recipes, tests and documentation go by."""

from __future__ import annotations

from typing import Any

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.selectors.base import Selector
from datas3_ray.selectors.blind_coreset import BlindCoreset
from datas3_ray.selectors.caption_words import CaptionWords
from datas3_ray.selectors.clip_score import ClipScore
from datas3_ray.selectors.datacomp_basic import DataCompBasic
from datas3_ray.selectors.density_pruning import DensityPruning
from datas3_ray.selectors.domain_classifier import DomainClassifier
from datas3_ray.selectors.everything import Everything
from datas3_ray.selectors.exact_dedup import ExactDedup
from datas3_ray.selectors.expert import Expert
from datas3_ray.selectors.gotd import GOTD
from datas3_ray.selectors.hash_dedup import HashDedup
from datas3_ray.selectors.image_align import ImageAlign
from datas3_ray.selectors.import_score import ImportScore
from datas3_ray.selectors.importance_resampling import ImportanceResampling
from datas3_ray.selectors.k_center import KCenter
from datas3_ray.selectors.match_dist import MatchDist
from datas3_ray.selectors.match_label import MatchLabel
from datas3_ray.selectors.moderate import Moderate
from datas3_ray.selectors.near_neighbors import NearNeighbors
from datas3_ray.selectors.nearby import Nearby
from datas3_ray.selectors.nearest_cluster import NearestCluster
from datas3_ray.selectors.outside import load_class
from datas3_ray.selectors.random import Random
from datas3_ray.selectors.rds_plus import RDSPlus
from datas3_ray.selectors.semdedup import SemDeDup
from datas3_ray.selectors.ssp import SSP
from datas3_ray.selectors.stratified import Stratified
from datas3_ray.selectors.subset_selection import Rows, SubsetSelection
from datas3_ray.selectors.tsds import TSDS

SELECTORS: dict[str, type[Selector]] = {
    selector.method: selector
    for selector in (
        Everything,
        Random,
        Expert,
        Nearby,
        ImageAlign,
        SemDeDup,
        DensityPruning,
        ImportanceResampling,
        ClipScore,
        ImportScore,
        Stratified,
        ExactDedup,
        HashDedup,
        SSP,
        Moderate,
        MatchLabel,
        MatchDist,
        BlindCoreset,
        TSDS,
        RDSPlus,
        NearNeighbors,
        GOTD,
        DomainClassifier,
        KCenter,
        DataCompBasic,
        CaptionWords,
        NearestCluster,
    )
}


def make_selector(method: str, parameters: dict[str, Any]) -> Selector:
    """The selector that a recipe names, with its parameters; ``package.module:Class`` names one outside the package.

    >>> make_selector("random", {"size": 0.5})
    Random(size=0.5, seed=0)
    """
    if ":" in method:
        kind = load_class(method, Selector)
        if SELECTORS.get(kind.method, kind) is not kind:
            raise UsageError(f"'{method}' calls itself '{kind.method}', as a method here does; give it another name.")
        return checked(kind, parameters, method)
    if method not in SELECTORS:
        raise UsageError(
            f"no selection method '{method}'; there are: {', '.join(SELECTORS)}.{did_you_mean(method, SELECTORS)}"
        )
    return checked(SELECTORS[method], parameters, method)


__all__ = [
    "SELECTORS",
    "Rows",
    "Selector",
    "SubsetSelection",
    *(selector.__name__ for selector in SELECTORS.values()),
    "make_selector",
]
