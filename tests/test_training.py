"""The training loop: it learns, it can be interrupted, and it never hides an error or leaves a thread."""

import threading
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdaudit import training
from kdaudit.student import StudentSpec, build
from kdaudit.training import MOST_DRAWERS, Schedule, drawers_for, train

torch.set_num_threads(1)

SPEC = StudentSpec("residual", 1, 6, 6, 2, (0.5,), (0.25,))
PLAN = Schedule(steps=24, epoch=6)


def draw(step: int) -> tuple[Tensor, Tensor]:
    """Bright images are of class 1; a step draws the same batch whenever it is asked."""
    generator = torch.Generator().manual_seed(step)
    targets = torch.randint(0, 2, (16,), generator=generator)
    return torch.rand(16, 1, 6, 6, generator=generator) * 0.5 + targets.view(-1, 1, 1, 1) * 0.4, targets


def fresh(seed: int = 0) -> nn.Module:
    return build(SPEC, seed)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def no_thread_is_left() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("kdaudit-draw")]


class Stop(Exception):
    pass


def test_a_small_network_learns():
    net = fresh()
    curve = train(net, draw, F.cross_entropy, PLAN)
    inputs, targets = draw(10_000)
    assert curve.losses[-1] < 0.5 * curve.losses[0]
    assert (net(inputs).argmax(1) == targets).float().mean() > 0.9
    assert curve.seconds > 0


def test_it_ends_in_evaluation_mode_on_the_cpu_with_no_thread_left():
    net = fresh()
    train(net, draw, F.cross_entropy, Schedule(3, 2))
    assert not any(module.training for module in net.modules())
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert no_thread_is_left()


def test_the_same_run_gives_the_same_weights_and_another_seed_others():
    runs = []
    for seed in (0, 0, 1):
        net = fresh(seed)
        train(net, draw, F.cross_entropy, PLAN)
        runs.append(weights(net))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_every_step_is_drawn_once_and_in_order():
    drawn = []

    def noted(step: int) -> tuple[Tensor, Tensor]:
        drawn.append(step)
        return draw(step)

    train(fresh(), noted, F.cross_entropy, PLAN)
    assert drawn == list(range(24))


def test_batches_that_several_threads_draw_are_learned_from_in_order(monkeypatch):
    alone, together = fresh(), fresh()
    expected = train(alone, draw, F.cross_entropy, PLAN)
    later = threading.Event()

    def overtaken(step: int) -> tuple[Tensor, Tensor]:
        if step == 1:
            later.set()
        if step == 0:
            assert later.wait(60)  # the second step is drawn before the first
        return draw(step)

    monkeypatch.setattr("kdaudit.training.drawers_for", lambda _device: 3)
    curve = train(together, overtaken, F.cross_entropy, PLAN)
    assert curve.losses == expected.losses
    assert same(weights(together), weights(alone))
    assert no_thread_is_left()


def test_a_cpu_keeps_its_cores_for_the_control_and_a_gpu_leaves_them_to_those_who_draw(monkeypatch):
    monkeypatch.setattr("kdaudit.training.cores", lambda: 6)
    assert (drawers_for("cpu"), drawers_for("cuda")) == (1, 5)
    monkeypatch.setattr("kdaudit.training.cores", lambda: 64)
    assert drawers_for("cuda") == MOST_DRAWERS
    monkeypatch.setattr("kdaudit.training.cores", lambda: 1)
    assert drawers_for("cuda") == 1


def test_epochs_are_told_and_the_last_may_be_short():
    told: list[int] = []
    curve = train(fresh(), draw, F.cross_entropy, Schedule(10, 4), on_epoch=lambda done, _loss: told.append(done))
    assert told == [4, 8, 10]
    assert len(curve.losses) == 3


@pytest.mark.parametrize("stop_after", [6, 18])
def test_an_interrupted_run_ends_with_exactly_the_weights_of_an_uninterrupted_one(tmp_path, stop_after):
    whole = fresh()
    expected = train(whole, draw, F.cross_entropy, PLAN)
    checkpoint = tmp_path / "training.pt"

    def interrupt(done: int, _loss: float) -> None:
        if done == stop_after:
            raise Stop

    with pytest.raises(Stop):
        train(fresh(), draw, F.cross_entropy, PLAN, checkpoint=checkpoint, recipe="a", on_epoch=interrupt)
    assert no_thread_is_left()
    told: list[int] = []
    resumed = fresh(seed=5)  # whatever it was, the checkpoint replaces it
    curve = train(
        resumed, draw, F.cross_entropy, PLAN, checkpoint=checkpoint, recipe="a", on_epoch=lambda d, _l: told.append(d)
    )
    assert same(weights(resumed), weights(whole))
    assert curve.losses == expected.losses
    assert told == list(range(stop_after, 25, 6))


def test_what_was_done_after_the_last_checkpoint_is_done_again(tmp_path):
    whole = fresh()
    train(whole, draw, F.cross_entropy, PLAN)

    def dies(step: int) -> tuple[Tensor, Tensor]:
        if step == 15:
            raise Stop
        return draw(step)

    checkpoint = tmp_path / "training.pt"
    with pytest.raises(Stop):
        train(fresh(), dies, F.cross_entropy, PLAN, checkpoint=checkpoint)
    drawn = []

    def noted(step: int) -> tuple[Tensor, Tensor]:
        drawn.append(step)
        return draw(step)

    resumed = fresh()
    train(resumed, noted, F.cross_entropy, PLAN, checkpoint=checkpoint)
    assert drawn == list(range(12, 24))
    assert same(weights(resumed), weights(whole))


def test_a_finished_checkpoint_is_taken_as_it_is(tmp_path):
    checkpoint = tmp_path / "training.pt"
    net = fresh()
    expected = train(net, draw, F.cross_entropy, PLAN, checkpoint=checkpoint)

    def never(step: int) -> tuple[Tensor, Tensor]:
        raise AssertionError

    again = fresh(seed=5)
    curve = train(again, never, F.cross_entropy, PLAN, checkpoint=checkpoint)
    assert same(weights(again), weights(net))
    assert not again.training
    assert curve.losses == expected.losses


def test_a_checkpoint_of_another_recipe_is_ignored(tmp_path):
    checkpoint = tmp_path / "training.pt"
    train(fresh(seed=5), draw, F.cross_entropy, PLAN, checkpoint=checkpoint, recipe="a")
    one, other = fresh(), fresh()
    train(one, draw, F.cross_entropy, PLAN, checkpoint=checkpoint, recipe="b")
    train(other, draw, F.cross_entropy, PLAN)
    assert same(weights(one), weights(other))


def test_a_checkpoint_of_another_network_is_ignored(tmp_path):
    """An architecture's name says nothing of its widths and activations, which a release may change."""
    checkpoint = tmp_path / "training.pt"
    train(fresh(seed=5), draw, F.cross_entropy, PLAN, checkpoint=checkpoint, recipe="a")

    def wider(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(fresh(seed), nn.Identity(), nn.Linear(fresh()(draw(0)[0]).shape[1], 3))

    one, other = wider(), wider()
    assert training.form_of(one) == training.form_of(other) != training.form_of(fresh())
    assert training.form_of(nn.Sequential(nn.ReLU())) != training.form_of(nn.Sequential(nn.GELU()))
    train(one, draw, F.cross_entropy, PLAN, checkpoint=checkpoint, recipe="a")
    train(other, draw, F.cross_entropy, PLAN)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize("step", [0, 1, 7])
def test_an_error_in_drawing_is_raised_and_the_thread_ends(step):
    def fails(at: int) -> tuple[Tensor, Tensor]:
        if at == step:
            raise Stop("no such batch")
        return draw(at)

    with pytest.raises(Stop, match="no such batch"):
        train(fresh(), fails, F.cross_entropy, PLAN)
    assert no_thread_is_left()


def test_an_error_in_the_loss_ends_the_drawing():
    def fails(_logits: Tensor, _targets: Tensor) -> Tensor:
        raise Stop

    with pytest.raises(Stop):
        train(fresh(), draw, fails, PLAN)
    assert no_thread_is_left()


def test_the_rate_warms_up_and_falls_to_zero():
    plan = Schedule(100, 10, rate=1.0)
    rates = [plan.rate_at(step) for step in range(101)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0)
    assert rates[99] > 0
    assert Schedule(1, 1).rate_at(0) == 2e-3


def test_only_matrices_and_filters_decay():
    decaying, others = training._groups(fresh(), 0.05)
    assert decaying["weight_decay"] == 0.05
    assert others["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decaying["params"])
    assert all(p.ndim <= 1 for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(list(fresh().parameters()))


def test_bfloat16_is_used_where_the_cpu_multiplies_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(training, "cpu_has_bfloat16", lambda has=has: has)
        with training.autocast("cpu"):
            assert torch.is_autocast_enabled("cpu") == has
