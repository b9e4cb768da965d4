"""Reports: a lake, its selections and its leaderboard as one self-contained HTML page."""

from datas3_ray.report.page import write_report

__all__ = ["write_report"]
