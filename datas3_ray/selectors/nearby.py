"""Nearby: rows taken close to where the deployment is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.kernels.great_circle import nearest_km
from datas3_ray.lake.view import Fragment
from datas3_ray.selectors.base import Inputs, Outcome, Selector
from datas3_ray.selectors.labels import as_texts, class_numbers, query_labels, require_labels

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class Nearby(Selector):
    """Keep rows within some kilometres of a row of the query, of classes that the query has (DataS3's camera experts).

    Parameters
    ----------
    km : float
        Great-circle distance on a sphere, in kilometres; a row at just this distance is kept.
    latitude, longitude : str
        Columns in degrees, in the table and in the query.
    label : str, optional
        Column of the labels: rows whose label no query has are dropped, as are rows without one. By default labels
        are not looked at.

    Notes
    -----
    A row without coordinates, or with impossible ones, is invalid; such queries are left out and counted. The score is
    the distance to the nearest query, negated, and so is the column ``km`` in kilometres. DataS3's expert for camera
    traps is ``Nearby(km=100, label="label")`` with the deployment's own cameras as the query.

    >>> Nearby(km=100).latitude
    'latitude'
    """

    method: ClassVar[str] = "nearby"
    needs_query: ClassVar[bool] = True

    km: float = Field(ge=0, allow_inf_nan=False)
    latitude: str = "latitude"
    longitude: str = "longitude"
    label: str | None = None

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """Both tables must have coordinates that are numbers, and labels where they are looked at."""
        assert query is not None
        for each in (table, query):
            for column in (self.latitude, self.longitude):
                each.require_column(column)
                kind = each.schema.field(column).type
                if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                    raise UsageError(f"nearby: column '{column}' of table '{each.name}' is {kind}, not degrees.")
            if self.label is not None:
                require_labels(each, self.label)

    def choose(self, inputs: Inputs) -> Outcome:
        """Each fragment measures its rows against the query's distinct places."""
        import ray

        assert inputs.query is not None
        rows = inputs.query.to_arrow([self.latitude, self.longitude])
        places, there = _places(rows, self.latitude, self.longitude)
        places = np.unique(places[there], axis=0)
        if not len(places):
            raise UsageError(f"nearby: no row of query table '{inputs.query.name}' has coordinates.")
        report: dict[str, object] = {"places": len(places), "queries_without_place": int((~there).sum())}
        classes = None
        if self.label is not None:
            counts, report["unlabelled_queries"] = query_labels(inputs.query, self.label)
            report["classes"] = len(counts)
            classes = ray.put(pa.array(list(counts), pa.string()))
        return Outcome(inputs.view.map(_near, self, ray.put(places), classes), report=report)


def _near(fragment: Fragment, asked: Nearby, places: np.ndarray, classes: pa.Array | None) -> pa.Table:
    columns = (asked.latitude, asked.longitude, *((asked.label,) if asked.label else ()))
    schema = pa.schema([("id", pa.string()), ("keep", pa.bool_()), ("score", pa.float64()), ("km", pa.float64())])
    parts = [schema.empty_table()]
    for rows in fragment.batches(columns):
        points, there = _places(rows, asked.latitude, asked.longitude)
        fragment.counts.invalid += int((~there).sum())
        km = nearest_km(points[there], places)
        keep = km <= asked.km
        rows = rows.filter(pa.array(there))
        if asked.label is not None:
            keep &= class_numbers(as_texts(rows.column(asked.label)), classes).to_numpy() >= 0
        parts.append(pa.table([rows.column("id"), pa.array(keep), pa.array(-km), pa.array(km)], schema=schema))
    return pa.concat_tables(parts)


def _places(rows: pa.Table, latitude: str, longitude: str) -> tuple[np.ndarray, np.ndarray]:
    """Degrees (n, 2) and which of them are a place on Earth."""
    columns = [pc.fill_null(rows.column(name).cast(pa.float64()), np.nan).to_numpy() for name in (latitude, longitude)]
    points = np.stack(columns, axis=1)
    with np.errstate(invalid="ignore"):
        there = (np.abs(points[:, 0]) <= 90) & (np.abs(points[:, 1]) <= 360)
    return points, there
