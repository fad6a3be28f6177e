"""What a benchmark ran on: the processor, its measured matrix rate, and the versions."""

import os
import platform
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("neurank", "torch", "numpy", "numba", "shapiq", "captum")

ZEN = {(23, range(0x30)): "Zen", (23, range(0x30, 0x100)): "Zen 2"} | {
    (25, range(0x10)): "Zen 3",
    (25, range(0x10, 0x20)): "Zen 4",
    (25, range(0x20, 0x60)): "Zen 3",
    (25, range(0x60, 0x100)): "Zen 4",
    (26, range(0x100)): "Zen 5",
}
"""AMD's families and models, for processors that give no more than a trade name."""


@dataclass(frozen=True)
class Machine:
    """A machine in words and figures.

    Attributes
    ----------
    processor : as the system names it.
    cores, threads : logical cores, and threads that torch uses.
    matrix_rate : multiply-adds per second of a product of float32 matrices.
    device : the CUDA device's name, None without one.
    versions : of Python and the libraries.
    """

    processor: str
    cores: int
    threads: int
    matrix_rate: float
    device: str | None
    versions: dict[str, str]

    @property
    def in_words(self):
        """One line for a results page."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        rate = f"{self.matrix_rate / 1e9:.0f} GMAC/s in float32 matrix products"
        device = self.device or "no CUDA device"
        return f"{self.cores} cores of {self.processor}, {threads}, {rate}; {device}"


def this_machine():
    """Describe the machine; takes about a second, for the matrix rate."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        matrix_rate=matrix_rate(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        versions={"Python": platform.python_version()}
        | {library: version(library) for library in LIBRARIES},
    )


def matrix_rate(size=2048, repetitions=7, device="cpu"):
    """Measure multiply-adds per second of a `size` x `size` float32 product, the median."""
    left, right = torch.rand(2, size, size, device=device)
    seconds = []
    for _ in range(repetitions + 1):  # the first warms up
        started = time.perf_counter()
        torch.mm(left, right)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return size**3 / statistics.median(seconds[1:])


def _processor():
    """Name the processor, with AMD's generation where the name does not tell it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.splitlines())
    facts = {}
    for key, _, fact in lines:
        facts.setdefault(key.strip(), fact.strip())
    name = facts.get("model name", platform.machine())
    if facts.get("vendor_id") != "AuthenticAMD":
        return name
    family, model = int(facts["cpu family"]), int(facts["model"])
    kinds = [zen for (of, models), zen in ZEN.items() if of == family and model in models]
    return f"{name} ({kinds[0]})" if kinds else name
