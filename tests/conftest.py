"""Settings of every test."""

import os
import signal

# No test asks a model hub, wherever it runs; what a hub answers is tried with one of our own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell ignores Ctrl-C for what it starts in the background, and children inherit that; the tests
# that interrupt a command would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
