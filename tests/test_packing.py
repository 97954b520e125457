"""A packed row gives the loss and the gradients of its documents apart: nothing leaks from one into the next."""

from itertools import pairwise

import pytest
import torch

from hf_peft_recipes import get_recipe
from hf_peft_recipes.data.rendering import IGNORED


@pytest.fixture
def packed(request, jsonl, tmp_path):
    """Return a trainer over packed rows whose model attends as the test says."""
    attention, speed = request.param
    recipe = get_recipe(
        "full", dataset=str(jsonl), attn_implementation=attention, speed=speed, bf16=False, max_length=256,
        per_device_eval_batch_size=1, **{"model.dtype": "float32"},
    )  # fmt: skip
    return recipe.build_trainer(tmp_path / "out")


def documents(batch):
    """Return the documents of a packed batch, each as a batch of its own."""
    positions = batch["position_ids"][0].tolist()
    starts = [at for at, position in enumerate(positions) if position == 0] + [len(positions)]
    return [
        {key: batch[key][:, start:end] for key in ("input_ids", "labels", "position_ids")}
        for start, end in pairwise(starts)
    ]


def loss_and_gradients(trainer, batches, number, train):
    """Return the loss over `number` supervised tokens, and the gradients where they are made."""
    model = trainer.model.train(train)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        with torch.set_grad_enabled(train):
            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(number))
        if train:
            loss.backward()
        total += float(loss.detach())
    return total, {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}


@pytest.mark.parametrize("packed", [("sdpa", "off"), ("eager", "off"), ("sdpa", "auto")], indirect=True, ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_a_packed_row_is_its_documents_apart(packed, train):
    loader = packed.get_train_dataloader() if train else packed.get_eval_dataloader()
    batch = next(iter(loader))
    apart = documents(batch)
    assert len(apart) > 3, "the row holds too few documents to tell"
    # The first token of a document is predicted by nothing.
    number = sum(int((piece["labels"][:, 1:] != IGNORED).sum()) for piece in apart)
    assert number == int((batch["labels"][:, 1:] != IGNORED).sum())
    loss, gradients = loss_and_gradients(packed, [batch], number, train)
    loss_apart, gradients_apart = loss_and_gradients(packed, apart, number, train)
    assert loss == pytest.approx(loss_apart, rel=1e-5)
    assert bool(gradients) is train
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_apart[name], atol=2e-6, rtol=1e-4, msg=name)
