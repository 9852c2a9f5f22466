"""Systems compared: the runs of a comparison, its statistics, its report."""
