"""What `tests/devices` cannot say of replays: how rows are padded, and that a CPU only calls the function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nullpaper.models.graphs import Replay, by_rows, padded


def test_rows_are_padded_to_few_lengths_by_a_quarter_at_most() -> None:
    lengths = [padded(count) for count in range(1, 2_001)]
    assert all(count <= length <= max(8, 1.25 * count) for count, length in enumerate(lengths, 1))
    assert lengths == sorted(lengths) and len(set(lengths)) <= 34
    assert all(padded(length) == length for length in lengths)


def test_a_cpu_calls_the_function_itself() -> None:
    calls = []

    def double(values: Tensor, other: None) -> tuple[Tensor]:
        calls.append(len(values))
        return (2 * values,)

    replay = Replay(double)
    for count in (3, 3, 3, 3, 5):
        assert torch.equal(replay(torch.ones(count), None)[0], torch.full((count,), 2.0))
    assert calls == [3, 3, 3, 3, 5]
    layer = nn.Linear(2, 1)
    assert torch.equal(by_rows(lambda model, x: (model(x),), layer, torch.ones(3, 2))[0], layer(torch.ones(3, 2)))
