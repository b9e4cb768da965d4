"""datas3-ray: from a lake of images and a few examples of one deployment to the training subset that serves it best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Lake", "Selection", "__version__"]

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection


def __getattr__(name: str) -> Any:
    # Arrow and Lance load only when a lake is used, so that `datas3 --help` answers at once.
    if name in ("Lake", "Selection"):
        from datas3_ray import lake

        return getattr(lake, name)
    raise AttributeError(f"module 'datas3_ray' has no attribute '{name}'")
