"""The bench of the sampler: what it times is done, and the peer gets our weights."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer

from midigpt.model import ModelConfig, build_model
from tests.conftest import PROJECT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROJECT / "bench"))
    specification = importlib.util.spec_from_file_location("bench_sample", PROJECT / "bench" / "sample.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "bench_sample", module)
    specification.loader.exec_module(module)
    return module


def test_tokens_and_the_first_note_are_timed(bench: ModuleType, prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "block_size": 64, "n_layer": 1, "n_head": 2, "n_kv_head": 2}
    model = build_model(ModelConfig(type="gpt2", **sizes, n_embd=16, n_hidden=32)).eval()
    times = iter([0.0, 2.0])
    bench.timed = lambda work: (work(), next(times) or 1.0)[1]
    assert bench.our_speed(model, tokenizer, "float32", 3, 64) == 3 * 63  # in a second
    bench.timed = lambda work: (work(), 0.25)[1]
    waits = bench.latency(model, tokenizer, 1)
    assert list(waits.values()) == [0.25, 0.25]
    (prompt, _) = waits
    assert 400 <= int(prompt.split()[-2]) <= 512


def test_nanogpts_model_gets_our_weights(bench: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "class GPTConfig:\n"
        "    def __init__(self, **sizes): self.sizes = sizes\n"
        "class GPT(torch.nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        print('number of parameters')\n"
        "    def load_state_dict(self, weights): self.weights = weights\n"
    )
    sizes = {"vocab_size": 50, "block_size": 64, "n_layer": 1, "n_head": 2, "n_kv_head": 2}
    ours = build_model(ModelConfig(type="gpt2", **sizes, n_embd=16, n_hidden=32))
    weights = bench.nanogpt.with_weights(tmp_path, ours).weights
    state = ours.state_dict()
    assert weights["transformer.h.0.attn.c_attn.weight"].shape == (48, 16)
    assert torch.equal(weights["transformer.h.0.mlp.c_fc.weight"], state["transformer.h.0.mlp.c_fc.weight"].t())
    assert torch.equal(weights["lm_head.weight"], state["transformer.wte.weight"])
    assert torch.equal(weights["transformer.ln_f.bias"], state["transformer.ln_f.bias"])
