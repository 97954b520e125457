from types import SimpleNamespace

import pytest
import torch

from hf_peft_recipes.errors import NotTrainedError
from hf_peft_recipes.proof import UPDATES_TO_JUDGE, TrainingProof, checksum


def train(model, loss, steps=4, rate=0.1, optimizer=None, proof=None):
    """Run a loop of our own under the proof's eyes, calling it as transformers' Trainer does."""
    proof = proof or TrainingProof()
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate)
    scheduler = SimpleNamespace(get_last_lr=lambda: [rate])
    proof.on_train_begin(None, None, None, model=model)
    for step in range(steps):
        state = SimpleNamespace(global_step=step)
        loss(model).backward()
        proof.on_pre_optimizer_step(None, state, None, model=model, lr_scheduler=scheduler)
        optimizer.step()
        optimizer.zero_grad()
        proof.on_step_end(None, state, None, model=model)
    proof.on_train_end(None, None, None, model=model)
    return proof.result()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def square(model):
    return model(torch.ones(1, 3)).square().sum()


def test_a_model_that_trains_is_proved(model):
    result = train(model, square)
    assert result["unproved"] == {}
    assert result["proved_tensors"] == result["trainable_tensors"] == 4


def test_a_tensor_outside_the_loss_stops_the_run(model):
    with pytest.raises(NotTrainedError, match=r"1\.weight: no gradient: it takes no part in the loss"):
        train(model, lambda m: m[0](torch.ones(1, 3)).square().sum())


def test_steps_that_vanish_in_rounding_stop_the_run():
    model = torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    with pytest.raises(NotTrainedError, match="its gradient is not zero, but its value does not change"):
        train(model, lambda m: m(torch.ones(1, 3, dtype=torch.bfloat16)).sum(), rate=1e-5)


def test_a_zero_gradient_is_fatal_in_a_dense_tensor(model):
    with pytest.raises(NotTrainedError, match="its gradient is zero"):
        train(model, lambda m: m[1](torch.ones(1, 4)).sum() + 0 * m[0](torch.ones(1, 3)).sum())


def test_an_idle_expert_is_named_and_not_fatal():
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False) for _ in range(2)])})
    result = train(
        model, lambda m: m["experts"][0](torch.ones(1, 2)).sum() + 0 * m["experts"][1](torch.ones(1, 2)).sum()
    )
    assert result["unproved"] == {"experts.1.weight": "its gradient is zero"}
    assert result["judged"]


def test_a_rate_of_zero_is_not_judged(model):
    result = train(model, square, rate=0.0)
    assert len(result["unproved"]) == 4
    assert not result["judged"]


def test_a_short_run_reports_unproved(model):
    result = train(model, lambda m: m[0](torch.ones(1, 3)).sum(), steps=UPDATES_TO_JUDGE - 1)
    assert set(result["unproved"]) == {"1.weight", "1.bias"}
    assert not result["judged"]


def test_a_step_that_is_left_out_is_none_to_judge_by(model):
    proof = TrainingProof(leaves_out=lambda step: step in (1, 3))

    def loss(m):
        return 0 * square(m) if proof_steps.pop(0) in (1, 3) else square(m)

    proof_steps = [1, 2, 3, 4]
    result = train(model, loss, proof=proof)
    assert (result["unproved"], result["judged"]) == ({}, True)
    # Judged by them it would have been told apart: two of three updates have no gradient.
    with pytest.raises(NotTrainedError, match="its gradient is zero"):
        train(model, lambda m: 0 * square(m), steps=3)


def test_training_that_goes_back_is_held_to_where_it_began(model):
    proof = TrainingProof()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, square, steps=2, proof=proof)
    model.load_state_dict(start)
    # Two of the three updates that are judged by were made before, and are made again.
    result = train(model, square, steps=2, proof=proof)
    assert (result["unproved"], result["proved_tensors"]) == ({}, 4)


def test_a_frozen_tensor_that_moves_is_found(model):
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(m):
        with torch.no_grad():
            m[0].weight += 1
        return square(m)

    with pytest.raises(NotTrainedError, match=r"frozen weights changed during training: 0\.weight"):
        train(model, loss, optimizer=optimizer)


def test_nothing_trainable_is_refused(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(NotTrainedError, match="nothing in the model is trainable"):
        TrainingProof().on_train_begin(None, None, None, model=model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_checksum_sees_one_element(dtype):
    tensor = torch.ones(1000, dtype=dtype)
    before = checksum(tensor)
    tensor[500] += 1
    assert checksum(tensor) != before
    assert checksum(tensor[::2]) == checksum(tensor[::2].contiguous())


def test_updates_without_a_gradient_are_none_to_judge_by_where_rewards_may_be_equal(model):
    steps = iter([0, 0, 0, 0, 1, 1, 1, 1])
    result = train(model, lambda m: next(steps) * square(m), steps=8, proof=TrainingProof(waits=True))
    assert result["unproved"] == {} and result["empty_updates"] == 4


def test_a_run_of_such_updates_alone_did_not_train(model):
    with pytest.raises(NotTrainedError, match="in all 2 updates every gradient was zero"):
        train(model, lambda m: 0 * square(m), steps=2, proof=TrainingProof(waits=True))
    assert not train(model, lambda m: 0 * square(m), steps=2, proof=TrainingProof(True, concludes=False))["judged"]
