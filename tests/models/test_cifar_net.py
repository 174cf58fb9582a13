"""The small net of experiment=cifar10_cpu, its optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from objrec.models import cifar_net
from objrec.training import muon, trainer
from objrec.training import schedulers as schedules


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def smooth_images(count: int = 64) -> Tensor:
    return nn.functional.avg_pool2d(torch.randn(count, 3, 40, 40), 5, stride=1)


def test_the_first_layer_whitens_what_it_was_shown() -> None:
    net = cifar_net.CifarNet(num_classes=10)
    images = smooth_images() * 5
    net.adapt_to(images)
    out = net.whiten(images) - net.whiten.bias.view(1, -1, 1, 1)
    out = out[:, :12].permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12), atol=0.02, rtol=0)
    torch.testing.assert_close(net.whiten.weight[12:], -net.whiten.weight[:12])
    assert not net.whiten.weight.requires_grad


def test_an_image_and_its_mirror_image_are_judged_alike() -> None:
    net = cifar_net.cifar_net(num_classes=4, in_chans=3)
    images = smooth_images(8)
    net(images)  # in training mode, so that the norms know some statistics
    net.eval()
    torch.testing.assert_close(net(images), net(images.flip(3)))
    plain = cifar_net.CifarNet(num_classes=4, mirror=False).eval()
    assert not torch.allclose(plain(images), plain(images.flip(3)))


def test_it_has_no_trained_weights() -> None:
    with pytest.raises(ValueError, match="no trained weights"):
        cifar_net.cifar_net(pretrained=True, num_classes=4)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    out = muon.orthogonalize(matrix, steps=8).float()
    assert out.shape == matrix.shape
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.5 and values.max() < 1.4
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.trace(u.T @ out @ v.T) > 0.9 * values.sum()


def test_kernels_matrices_and_vectors_have_rates_of_their_own() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    optimizer = muon.Muon(
        [{"params": list(net.parameters()), "lr": 0.2}],
        lr=1.0, momentum=0.6, head_lr=3.0, other_lr=0.5, sgd_momentum=0.9, weight_decay=0.01, steps=3,
    )  # fmt: skip
    rates = {g["params"][0].ndim: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert rates == {
        4: (pytest.approx(0.2), 0.0),
        2: (pytest.approx(0.6), 0.01),
        1: (pytest.approx(0.1), 0.01),
    }
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(5, 3, 3, 3)).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))


def test_muon_learns_and_resumes_to_the_bit() -> None:
    images, labels = smooth_images(32)[:, :, :12, :12], torch.arange(32) % 2
    images[labels == 1] += 1

    def make() -> tuple[nn.Module, muon.Muon]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        settings = {"momentum": 0.6, "head_lr": 1.0, "other_lr": 1.0, "sgd_momentum": 0.9, "weight_decay": 1e-4}
        return net, muon.Muon(net.parameters(), lr=0.05, steps=3, **settings)

    def train(net: nn.Module, optimizer: muon.Muon, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
        return loss.item()

    whole, optimizer = make()
    first = train(whole, optimizer, 1)
    assert train(whole, optimizer, 29) < first / 2

    half, optimizer = make()
    train(half, optimizer, 10)
    weights, state = half.state_dict(), optimizer.state_dict()
    resumed, optimizer = make()
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(resumed, optimizer, 20)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, resumed.state_dict()[name], atol=0, rtol=0)


def test_the_rate_rises_and_falls_to_zero_at_the_last_step() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = schedules.LinearDecay(optimizer, total_steps=10, warmup=0.2)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])


@pytest.mark.parametrize(("every", "epochs", "expected"), [(5, 30, 5), (5, 3, 3), (5, 12, 4), (5, 7, 1), (1, 9, 1)])
def test_the_last_epoch_is_always_validated(every: int, epochs: int, expected: int) -> None:
    assert trainer._epochs_between_validations(every, epochs) == expected
