"""The command of selectors.py: which jobs there are, and what is printed and kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from benchmarks import selector_kernels, selector_tables
from benchmarks.measuring import Figure, Sizes
from datas3_ray.encoders.torch_encoder import cpu_has_bf16

JOBS = {
    "kmeans": selector_kernels.kmeans,
    "semdedup_kernel": selector_kernels.semdedup_kernel,
    "semdedup": selector_tables.semdedup,
    "semdedup_large_cluster": selector_tables.semdedup_large_cluster,
    "query": selector_tables.query,
    "rds_plus": selector_tables.rds_plus,
    "resize": selector_tables.resize,
    "k_center": selector_tables.k_center,
    "blind_coreset": selector_tables.blind_coreset,
    "blind_coreset_large": selector_tables.blind_coreset_large,
}


def main(description: str) -> int:
    """Run the jobs, print their figures, say which floors were missed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    unknown = [job for job in options.jobs if job not in JOBS]
    if unknown:
        parser.error(f"unknown job '{unknown[0]}'; there are: {', '.join(JOBS)}")
    sizes = Sizes.small() if options.quick else Sizes(False)
    units = "bf16 units" if cpu_has_bf16() else "no bf16 units"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {units}", flush=True)
    figures: list[Figure] = []
    for job in options.jobs or JOBS:
        for figure in JOBS[job](sizes):
            figures.append(figure)
            print(figure.sentence(judged=not options.quick), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"sizes": asdict(sizes), "figures": [asdict(f) for f in figures]}, indent=2))
    missed = [figure.name for figure in figures if figure.holds is False]
    if missed and not options.quick:
        print(f"missed: {', '.join(missed)}")
    return int(bool(missed) and not options.quick)
