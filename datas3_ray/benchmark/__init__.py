"""The leaderboard: which selection served which deployment best; the paper's rows beside it; verifiable submissions."""

from datas3_ray.benchmark.leaderboard import Cell, Leaderboard, PaperStyle, Row, leaderboard
from datas3_ray.benchmark.paper_rows import PaperCell, PaperRow, read_paper

__all__ = ["Cell", "Leaderboard", "PaperCell", "PaperRow", "PaperStyle", "Row", "leaderboard", "read_paper"]
