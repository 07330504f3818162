"""Generation from Python."""

import pytest
import torch

import adder
from adder.generation import allowed, penalised


def sharp_model(device, vocab=17):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=vocab, tie_embeddings=False).eval().to(device)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


def greedy_alone(model, prompt, steps, stops=()):
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([ids], device=model.lm_head.weight.device))[0][0, -1].argmax())
        if token in stops:
            return ids[len(prompt):], "stop"
        ids.append(token)
    return ids[len(prompt):], "length"


def test_generate_ragged_prompts_with_a_stop_for_each_row(device):
    model = sharp_model(device)
    prompts = [[1, 2, 3], [4], torch.tensor([5, 6, 7, 8, 9, 10]), [11, 12]]
    free = [greedy_alone(model, [int(t) for t in p], 12)[0] for p in prompts]
    stop = next(token for row in free for token in row if any(token not in other for other in free))
    got = model.generate(prompts, max_tokens=12, temperature=0, stop_tokens=[stop])
    assert got == [adder.GeneratedRow(*greedy_alone(model, [int(t) for t in p], 12, (stop,))) for p in prompts]
    assert {row.finish for row in got} == {"stop", "length"} and all(stop not in row.tokens for row in got)
    assert model.generate([[], [4]], start_token=4, max_tokens=3, temperature=0)[0] == model.generate(
        torch.tensor([[4]]), max_tokens=3, temperature=0)[0]
    seen = []
    ended = model.generate(prompts[:2], max_tokens=5, temperature=0,
                           callback=lambda row, token: seen.append(row) or row == 1)
    assert [len(row.tokens) for row in ended] == [5, 1] and ended[1].finish == "callback" and seen == [0, 1, 0, 0, 0, 0]
    assert model.generate([], max_tokens=3) == [] and model.generate([[1]], max_tokens=0)[0].tokens == []


def test_draws_do_not_depend_on_the_batch(device):
    model = sharp_model(device)
    prompts = [[1, 2], [3], [4, 5, 6]]
    whole = model.generate(prompts, max_tokens=9, seed=5, top_p=0.95)
    assert model.generate(prompts[:2], max_tokens=9, seed=5, top_p=0.95) == whole[:2]
    assert model.generate(prompts, max_tokens=9, seed=6, top_p=0.95) != whole


def test_what_draws_are_limited_to(device):
    logits = torch.tensor([[2.0, 1.0, 2.0, 0.0, -1.0], [0.0, 3.0, 0.0, 0.0, 0.0]], device=device)
    p = torch.softmax(logits.double(), -1)
    torch.testing.assert_close(allowed(logits), p)
    torch.testing.assert_close(allowed(logits, temperature=0.5), torch.softmax(logits.double() * 2, -1))
    assert (allowed(logits, top_k=1) > 0).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]  # of equal ones the lower id
    assert (allowed(logits, top_k=3) > 0).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert (allowed(logits, top_p=0.4) > 0).tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert (allowed(logits, top_p=0.0) > 0).sum(-1).tolist() == [1, 1]
    assert (allowed(logits, min_p=0.3) > 0).tolist() == [[1, 1, 1, 0, 0], [0, 1, 0, 0, 0]]  # by each row's own largest
    assert (allowed(logits, top_k=3, min_p=0.1).sum(-1) - 1).abs().max() < 1e-12
    assert penalised(logits, [[0, 0, 4], [0]], 2.0).tolist() == [[1, 1, 2, 0, -2], [0, 3, 0, 0, 0]]


def test_errors_of_generate(device):
    model = sharp_model(device)
    for named, message in ((dict(prompts=[[1], []]), "prompt 1 is empty and there is no start_token"),
                           (dict(prompts=[[1, 17]]),
                            r"token 17 at position 1 of prompt 0 is outside the vocabulary \[0, 17\)"),
                           (dict(prompts=[[1]], top_p=1.5), r"top_p must be in \[0, 1\], got 1.5")):
        with pytest.raises(ValueError, match=f"generate: {message}"):
            model.generate(**named)
