"""Devices by name, their peaks, and memory that is short. What needs a GPU to be seen is only reasoned about here."""

import pytest
import torch

from midigpt import devices
from midigpt.devices import PEAK_TFLOPS, fast_bf16, find_device, fitting, peak_flops
from midigpt.files import UserError


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, tflops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_name", lambda device: name)
    monkeypatch.setattr(devices, "fast_bf16", lambda device: True)
    assert peak_flops("cuda:0") == (tflops * 1e12, "stated by its maker")


def test_an_unknown_device_is_measured() -> None:
    flops, how = peak_flops("cpu")
    assert 1e9 < flops < 1e15 and "measured" in how
    assert not any(name in "cpu" for name in PEAK_TFLOPS)


def test_devices_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == "cpu"
    with pytest.raises(UserError, match="--device cpu:3: there is no such device"):
        find_device("cpu:3")
    monkeypatch.setattr(devices, "pick_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == "cuda:1" and find_device(None) == "cuda"
    for wrong in ("cuda:2", "cuda:x", "tpu"):
        with pytest.raises(UserError, match=f"--device {wrong}"):
            find_device(wrong)


def test_processors_that_do_not_name_the_instructions_train_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for abilities, fast in (({}, False), ({"amx_bf16": True}, True), ({"avx512_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda a=abilities: a, raising=False)
        fast_bf16.cache_clear()
        assert fast_bf16("cpu") == fast
    fast_bf16.cache_clear()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("MPS backend out of memory")])
def test_too_little_memory_is_a_sentence_and_other_errors_are_not_hidden(error: RuntimeError) -> None:
    with pytest.raises(UserError, match="don't fit into the device's memory; try less"), fitting("less"):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), fitting("less"):
        raise RuntimeError("shapes differ")
