"""Evaluation: any model in by one door, features to a file, tasks on features, records out."""
