"""The report: one page from result files; loads no torch."""
