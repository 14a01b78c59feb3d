"""What each layer reads, gives and gets back in a step, to be compared; off unless asked for.

A recorder is handed to whoever runs layers. Every tensor that a layer reads, and its output, goes
through an alias of its own, so that the gradient of just this use of it can be seen.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Pass:
    """One layer's forward and backward over some examples.

    Attributes:
        inputs, output: copies of what was read and given.
        input_gradients, parameter_gradients: by position, the gradient of this layer's use.
        output_gradient: the sum over all uses that whoever ran the layer knows of.
        reads_trained: whether something that was read, or a parameter, has a gradient.
        needs_grad: whether the output has one.
    """

    inputs: list[Tensor]
    output: Tensor | None = None
    input_gradients: dict[int, Tensor] = field(default_factory=dict)
    parameter_gradients: dict[int, Tensor] = field(default_factory=dict)
    output_gradient: Tensor | None = None
    reads_trained: bool = False
    needs_grad: bool = False


class Recorder(Generic[Key]):
    """Passes by whatever key the runner gives them.

    A forward that runs again for the backward is not recorded a second time; its gradients are.
    """

    def __init__(self) -> None:
        self.passes: dict[Key, Pass] = {}

    def reads(
        self, key: Key, inputs: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Aliases of what a layer is about to read, in whose place it reads them."""
        if key not in self.passes:
            self.passes[key] = Pass([x.detach().clone() for x in inputs])
        found = self.passes[key]
        if torch.is_grad_enabled():  # not in a forward that will run again
            found.reads_trained = any(x.requires_grad for x in (*inputs, *parameters))
        return (
            [_watched(x, found.input_gradients, n) for n, x in enumerate(inputs)],
            [_watched(w, found.parameter_gradients, n) for n, w in enumerate(parameters)],
        )

    def gives(self, key: Key, output: Tensor) -> Tensor:
        """An alias of what a layer has given, which others read in its place."""
        found = self.passes[key]
        if found.output is None:
            found.output = output.detach().clone()
        if not output.requires_grad:
            return output
        found.needs_grad = True
        alias = output.view_as(output)

        def keep(gradient: Tensor) -> None:
            found.output_gradient = gradient.clone()

        alias.register_hook(keep)
        return alias


def _watched(x: Tensor, gradients: dict[int, Tensor], number: int) -> Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x
    alias = x.view_as(x)

    def keep(gradient: Tensor) -> None:
        gradients[number] = gradient.clone()

    alias.register_hook(keep)
    return alias
