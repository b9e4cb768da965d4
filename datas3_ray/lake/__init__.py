"""LanceDB tables: schemas, the one committer, the shard ledger, views, selections and lineage."""

from datas3_ray.lake.lake import Lake
from datas3_ray.lake.selection import Selection
from datas3_ray.lake.table import Table

__all__ = ["Lake", "Selection", "Table"]
