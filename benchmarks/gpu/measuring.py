"""What the parts of `make gpu` have in common: rows of the table, checks, times on the GPU."""

import time


class Report:
    """What a part has found so far."""

    def __init__(self, device, scratch, quick):
        self.device, self.scratch, self.quick = device, scratch, quick
        self.rows, self.more = [], {}

    def row(self, what, value):
        """Add a line to the table."""
        self.rows.append((what, str(value)))
        print(f"  {what}: {value}", flush=True)


def require(condition, message):
    """Fail the part; `assert` is for bugs, this is for findings."""
    if not condition:
        raise RuntimeError(message)


def synchronize(device):
    """Wait for the GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device, function, rounds):
    """Seconds of each of some calls, after one that is not counted."""
    function()
    synchronize(device)
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return taken
