"""What the machine can do: which device, which number type, how many operations a second."""

import ctypes
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

from midigpt.files import UserError

# Dense bfloat16 products with float32 sums, TFLOP/s, as their makers state them. The first name that occurs counts.
PEAK_TFLOPS = {
    "B200": 2250,
    "GH200": 989,
    "H200 NVL": 835,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10": 125,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 4080": 97,
    "RTX 3090": 71,
    "RTX A6000": 155,
}
MATRIX = 2048  # side of the matrices that a CPU multiplies to find its peak; a GPU takes four times that


def find_device(wish: str | None) -> str:
    """The device asked for, or the fastest there is. Raises UserError where it is not to be had here."""
    device = wish or pick_device()
    kind, _, index = device.partition(":")
    if kind not in ("cpu", pick_device()):
        raise UserError(f"--device {device} is not to be had here; {pick_device()} is")
    if (kind != "cuda" and index) or (index and not (index.isdecimal() and int(index) < torch.cuda.device_count())):
        raise UserError(f"--device {device}: there is no such device here; {pick_device()} is one")
    return device


@contextmanager
def fitting(advice: str) -> Iterator[None]:
    """A device that runs out of memory inside is a UserError that ends in `advice`."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; MPS raises no narrower one
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            raise UserError(f"the model and its batch don't fit into the device's memory; try {advice}") from None
        raise


def pick_device() -> str:
    """cuda, mps or cpu: the fastest there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@cache
def fast_bf16(device: str) -> bool:
    """Whether bfloat16 matrix products are faster than float32 there: any recent GPU, CPUs with the instructions."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # of torch 2.13 and later
    return device.startswith("cpu") and (abilities.get("avx512_bf16", False) or abilities.get("amx_bf16", False))


def autocast(device: str) -> AbstractContextManager:
    """What a model's forward pass runs in: bfloat16 products where they are fast, else everything as it is."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16) if fast_bf16(device) else nullcontext()


def peak_flops(device: str) -> tuple[float, str]:
    """Operations a second at the most, and how that is known: stated by the maker, or measured here in a second."""
    name = device_name(device)
    for known, tflops in PEAK_TFLOPS.items():
        if re.search(rf"\b{known}\b", name) and fast_bf16(device):
            return tflops * 1e12, "stated by its maker"
    dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
    side = 4 * MATRIX if device.startswith("cuda") else MATRIX
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    seconds = []
    for _ in range(4):
        _synchronize(device)
        start = time.perf_counter()
        matrix @ matrix
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds), f"measured on a product of matrices of {side} x {side}"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a step frees for the next one.

    glibc gives large blocks back to the system at once, and getting them anew costs a quarter of a training step on
    the CPU (dev/LOG.md). Elsewhere this does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        if not libc.mallopt(mmap_threshold, 1 << 30):
            libc.mallopt(mmap_threshold, 1 << 25)  # older versions allow no more
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
