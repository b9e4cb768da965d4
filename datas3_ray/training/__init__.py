"""Models trained on selections: what a sweep is, the data it reads, the loops, the metrics and the results."""
