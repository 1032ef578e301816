"""What the system does to a reading process when memory runs out."""

import multiprocessing
import os
import signal
import time


class Killer:
    """Kills (SIGKILL) a DataLoader worker that was started after it was made."""

    def __init__(self) -> None:
        self._others = set(multiprocessing.active_children())

    def kill(self) -> None:
        """Kill one worker as soon as there is one."""
        while not (workers := set(multiprocessing.active_children()) - self._others):
            time.sleep(0.05)
        pid = workers.pop().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def strike(self) -> None:
        """Kill one worker and stay where the main process then hears of it."""
        self.kill()
        time.sleep(10)  # PyTorch's error cuts this short
