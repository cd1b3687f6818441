"""Reports: a run, several runs, or a data set on one HTML page."""
