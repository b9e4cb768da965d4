"""The leaderboard: which selection served which deployment best."""

from datas3_ray.benchmark.leaderboard import Cell, Leaderboard, Row, leaderboard

__all__ = ["Cell", "Leaderboard", "Row", "leaderboard"]
