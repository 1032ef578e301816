"""Settings of every test."""

import os

# No test asks a model hub, wherever it runs; what a hub answers is tried with one of our own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
