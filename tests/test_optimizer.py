"""Muon against PyTorch's own, and what the optimizers remember."""

import pytest
import torch
from torch import Tensor, nn

from midigpt.model import ModelConfig, build_model
from midigpt.optimizer import Muon, groups, make_optimizers, optimizer_state, orthogonalize, restore_optimizer_state

CONFIG = ModelConfig(vocab_size=30, block_size=16, n_layer=2, n_head=2, n_kv_head=2, n_embd=16, n_hidden=32)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (3, 16, 40), (40, 16)])
def test_all_singular_values_become_about_one(shape: tuple[int, ...]) -> None:
    singular = torch.linalg.svdvals(orthogonalize(random(*shape), torch.float32))
    assert singular.min() > 0.5 and singular.max() < 1.3
    assert torch.linalg.svdvals(random(*shape)).min() < 0.4 or shape[-1] != shape[-2]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon to compare with")
def test_muon_makes_the_steps_of_pytorchs() -> None:
    shapes = [(16, 24), (24, 16), (16, 24), (16, 16)]
    ours = [nn.Parameter(random(*shape, seed=n)) for n, shape in enumerate(shapes)]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    mine = Muon(ours, **settings)
    oracle = torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = random(*a.shape, seed=100 * step + n)
            b.grad = a.grad.clone()
        mine.step()
        oracle.step()
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        moved = b - random(*b.shape, seed=n)
        assert (a - b).norm() < 0.03 * moved.norm()  # both orthogonalise in bfloat16


def test_every_weight_has_one_optimizer_and_only_matrices_decay() -> None:
    for config in (CONFIG, ModelConfig(**{**CONFIG.__dict__, "type": "gpt2", "n_hidden": 64})):
        model = build_model(config)
        muon, adam = make_optimizers(model, 0.01, 0.002, weight_decay=0.1)
        names = {weight: name for name, weight in model.named_parameters()}
        by_muon = {names[weight] for group in muon.param_groups for weight in group["params"]}
        by_adam = {names[weight] for group in adam.param_groups for weight in group["params"]}
        assert by_muon | by_adam == set(names.values()) and not by_muon & by_adam
        assert not any("emb" in name or "wte" in name or "wpe" in name for name in by_muon)
        assert {group["peak"] for group in muon.param_groups} == {0.01}
        assert {group["peak"] for group in adam.param_groups} == {0.002}
        for group in groups([muon, adam]):
            assert all(weight.ndim == 2 for weight in group["params"]) == (group["weight_decay"] > 0)


def test_optimizers_go_on_from_what_they_remembered() -> None:
    def trained(steps: int, stop_at: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        model = build_model(CONFIG)
        optimizers = make_optimizers(model, 0.01, 0.01, weight_decay=0.1)
        for step in range(steps):
            if step == stop_at:
                remembered = {name: tensor.clone() for name, tensor in optimizer_state(model, optimizers).items()}
                optimizers = make_optimizers(model, 0.01, 0.01, weight_decay=0.1)
                restore_optimizer_state(model, optimizers, remembered)
            tokens = torch.randint(0, 30, (4, 16), generator=torch.Generator().manual_seed(step))
            model(tokens, torch.arange(16)[None]).logsumexp(-1).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return model

    straight, halved = trained(6).state_dict(), trained(6, stop_at=3).state_dict()
    assert all(torch.equal(straight[name], halved[name]) for name in straight)
