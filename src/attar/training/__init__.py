"""One loop for every method: feed, phases, precision, averaging, checkpoints and logs."""
