"""Speed and memory of the selectors against their floors.

    python benchmarks/selectors.py [JOB ...] [--quick] [--json FILE]

Jobs: kmeans, semdedup_kernel, semdedup, semdedup_large_cluster, query, rds_plus, resize, k_center, blind_coreset,
blind_coreset_large; all of them by default. Each figure is a ratio measured in one run on the same cores (or seconds or
gigabytes where the name says so), on float32 data of 512 dimensions, and is held against its floor in floors.yaml; exit
status 1 where one is missed. Timings need an idle machine with 24 GB and some 20 GB of disk. ``--quick`` takes a few
thousand rows, to see that everything runs: starting tasks then costs more than the work, so no floor is judged.
"""

import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

if __name__ == "__main__":
    # Everything is imported from the root, so that this file does not hide the standard library's `selectors`.
    sys.path[:] = [os.path.dirname(HERE), *(place for place in sys.path if os.path.abspath(place) != HERE)]
    from benchmarks.selector_jobs import main

    sys.exit(main(__doc__))

# A script beside this file looks for modules here first. It is asking for the standard library's module of this name.
spec = importlib.util.spec_from_file_location(__name__, os.path.join(os.path.dirname(os.__file__), "selectors.py"))
assert spec is not None and spec.loader is not None
sys.modules[__name__] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[__name__])
