"""Scaled dot-product attention of many heads (Vaswani et al. 2017), without its projections.

Heads lie one after another along the channels, so to cut heads is to cut channels, between heads:

    q   head 0 | head 1 | head 2 | head 3        heads = 4, kv_heads = 2: two query heads in a row
    k, v     head 0     |      head 1            share a head of keys and values
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box
from orchestrator.models.layer import Layer
from orchestrator.models.layer_costs import FLOAT32, Kernel, LayerMemory, Pass
from orchestrator.models.pieces import take
from orchestrator.models.ranges import Ranges, normalise, size
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import SEQUENCE_AXES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class Attention(Layer):
    """softmax(q k' / sqrt(channels of a head)) v, for each head.

    It reads queries, keys and values, each a sequence of the same tokens, such as three Linear
    layers give them, and has no parameters.

    Args:
        heads: of the queries, which divide their channels.
        kv_heads: heads of keys and values, each of which serves ``heads / kv_heads`` query heads
            in a row (grouped-query attention, Ainslie et al. 2023); None for ``heads``.
        causal: a token attends to itself and to those before it.
        rotary: base of the rotary position embedding (Su et al. 2021) that turns queries and keys,
            channel i of a head with channel i + half of it, as in Llama; 10,000 is usual. None for
            none.
    """

    heads: int
    kv_heads: int | None = None
    causal: bool = True
    rotary: float | None = None
    kind: ClassVar[str] = "attention"
    drawn: ClassVar[str] = "block"
    input_count: ClassVar[int | None] = 3

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.key_heads

    # -- shapes and connectivity

    def output(self, *inputs: Value) -> Value:
        q, k, v = inputs
        self._check_heads(q)
        dim = q.channels // self.heads
        expected = Value((q.size("token"), self.key_heads * dim), SEQUENCE_AXES)
        if k != expected or v != expected:
            found = ", ".join("x".join(map(str, value.shape)) for value in inputs)
            raise InputError(
                f"layer {self.name}: keys and values must be sequences of {expected.shape[0]} "
                f"tokens and {self.key_heads} heads of {dim} channels like those of the queries, "
                f"{expected.shape[0]}x{expected.shape[1]}; found queries, keys and values of "
                f"{found}",
                remedy=f"Linear layers of {expected.channels} features for keys and values, or "
                "another kv_heads",
            )
        return q

    def _check_heads(self, q: Value) -> None:
        if q.axes != SEQUENCE_AXES:
            raise InputError(
                f"layer {self.name}: attention reads sequences, not values of "
                f"{'x'.join(map(str, q.shape))}"
            )
        heads, kv_heads = self.heads, self.key_heads
        if heads < 1 or q.channels % heads:
            raise InputError(
                f"layer {self.name}: {q.channels} channels of the queries do not divide into "
                f"{heads} heads",
                remedy="heads that divide the channels",
            )
        if kv_heads < 1 or heads % kv_heads:
            raise InputError(
                f"layer {self.name}: {heads} query heads do not divide over {kv_heads} heads of "
                "keys and values",
                remedy="kv_heads that divide heads",
            )
        if self.rotary is not None and (q.channels // heads % 2 or not self.rotary > 0):
            raise InputError(
                f"layer {self.name}: rotary turns the channels of a head in pairs, by powers of a "
                f"positive base; found {q.channels // heads} channels and base {self.rotary}",
                remedy="heads of an even number of channels, and rotary: 10000",
            )

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        """The same box of the queries; of keys and values the heads that serve it, and all tokens,
        with ``causal`` up to its last.

        Raises:
            InputError: channels that tear a head.
        """
        tokens, channels = out
        kv = self._dim(sized)
        groups = normalise(
            (head // self.group * kv, (head // self.group + 1) * kv)
            for head in self._heads_of(sized, channels)
        )
        last = tokens[-1][1] if self.causal else sized.output.size("token")
        keys = (((0, last),), groups)
        return (out, keys, keys)

    def _dim(self, sized: SizedLayer) -> int:
        """Channels of a head."""
        return sized.output.channels // self.heads

    def _heads_of(self, sized: SizedLayer, channels: Ranges) -> list[int]:
        """Query heads that these channels are.

        Raises:
            InputError: a head that is torn.
        """
        dim = self._dim(sized)
        for start, stop in channels:
            if start % dim or stop % dim:
                torn = (start if start % dim else stop) // dim
                raise InputError(
                    f"{self.name}: a cut of its channels at {start}:{stop} tears head {torn}; it "
                    f"has {self.heads} heads of {dim} channels, and each is computed by one rank",
                    remedy=f"split channel over a number of ranks that divides {self.heads}, or "
                    f"shares that add up to {self.heads}",
                )
        return [head for start, stop in channels for head in range(start // dim, stop // dim)]

    # -- arithmetic

    def macs(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> int:
        """Two products of ``dim`` for each head and pair of a query and a key that it attends to.

        With ``causal`` the pairs are counted exactly, the query of token t with t + 1 keys: a half
        of the square and half its diagonal. So parts that are cut by tokens add up to the whole,
        and the last tokens have the most to do.
        """
        tokens, channels = out
        if not self.causal:
            return 2 * size(channels) * size(tokens) * sized.output.size("token")
        pairs = sum((stop * (stop + 1) - start * (start + 1)) // 2 for start, stop in tokens)
        return 2 * size(channels) * pairs

    def signature(self, part: LayerPart) -> str:
        dim = self._dim(part.sized)
        found = [f"heads {size(part.out[1]) // dim}"]
        if self.group > 1:
            found.append(f"kv_heads {size(part.reads[1][1]) // dim}")
        found += ["causal"] if self.causal else []
        found += ["rotary"] if self.rotary is not None else []
        return " ".join(found)

    def kernels(
        self, part: LayerPart, examples: int, direction: Pass, itemsize: int
    ) -> tuple[Kernel, ...]:
        """Torch's fused functions (FlashAttention-2, Dao 2023, algorithms 1 and 2), in which the
        scores never leave the chip. With a product's FLOP, 2 dim for each score, as p::

            forward   q, k, v -> y, l        q k', softmax, times v             2 p + 5
            dots      y, gy -> d             a sum for each query and head
            backward  q, k, v, gy, l, d      q k' again, softmax again, then    5 p + 5
                      -> gq, gk, gv          p' gy, gy v', s k, s' q

        l, the logarithm of a row's sum, and d are in float32 at least. A softmax takes 5 operations
        a score: scaled, the largest, less that, its exponential, added up; its gradient as many.
        A causal kernel leaves out the scores behind the diagonal, but where the first token is
        another rank's: then a mask is read, and every score is computed. Before it come what turns
        queries and keys (:func:`_turned`) and copies of keys and values for heads that share them
        unevenly.
        """
        if direction == "backward_weight":
            return ()
        dim, forward = self._dim(part.sized), direction == "forward"
        (tokens, channels), (keys, key_channels) = part.output_shape, part.input_shapes[1]
        heads = channels // dim
        masked = self.causal and not _from_start(part.out[0])
        scores = examples * heads * tokens * keys
        if self.causal and not masked:
            scores = examples * part.macs_per_example // (2 * dim)
        product, softmax = 2 * dim * scores, 5 * scores
        uneven = self._shared(part) == 0
        q, k = examples * tokens * channels, examples * keys * key_channels
        read = examples * keys * channels if uneven else k  # of the keys, and of the values
        rows = examples * heads * tokens * max(itemsize, FLOAT32)
        mask = tokens * keys * itemsize if masked else 0
        ready: list[Kernel] = []
        if self.rotary is not None:
            for x, places in ((q, tokens), (k, keys)):
                ready += _turning(x, places * dim // 2, itemsize, forward=forward)
        if uneven:  # read and written; their gradients are added to zeros
            ready += [Kernel(0 if forward else read, (k + read) * itemsize)] * 2
        if forward:
            bytes_ = 2 * (q + read) * itemsize + rows + mask
            return (*ready, Kernel(2 * product + softmax, bytes_))
        dots = Kernel(2 * q, 2 * q * itemsize + rows)
        bytes_ = (3 * q + 4 * read) * itemsize + 2 * rows + mask
        return (dots, Kernel(5 * product + softmax, bytes_), *ready)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        """As torch's fused functions keep it: inputs, output and a logarithm a query and head.

        Queries and keys that rotary has turned are kept in place of the inputs, and so are keys
        and values copied for heads that share them unevenly. The output lies as the queries do:
        of turned ones, head by head, so that it is copied on its way out. A mask is kept in their
        format.
        """
        before, after = part.bytes(examples, itemsize)
        dim, per_value = self._dim(part.sized), examples * itemsize
        tokens, channels = size(part.out[0]), size(part.out[1])
        keys, key_channels = size(part.reads[1][0]), size(part.reads[1][1])
        saved = examples * tokens * (channels // dim) * max(itemsize, FLOAT32)
        if self.causal and not _from_start(part.out[0]):
            saved += tokens * keys * itemsize
        given, copied = keys * key_channels * per_value, keys * channels * per_value
        uneven, turned = self._shared(part) == 0, self.rotary is not None
        inputs: tuple[int, ...] = (0, 1, 2)
        if uneven:  # of keys and values
            saved, inputs = saved + 2 * copied, (0,)
        elif turned:
            saved, inputs = saved + given, (2,)  # keys
        if turned:  # queries; the output; cosines and sines
            saved += 2 * after + keys * dim * itemsize
            inputs = tuple(n for n in inputs if n)
        return LayerMemory(
            before, after, saved_inputs=inputs, saves_output=not turned, saved=saved,
            # gradients of the copies, before those of the inputs
            backward_extra=2 * (copied - given) if uneven else 0,
        )  # fmt: skip

    def _shared(self, part: LayerPart) -> int:
        """Query heads of a part on each of its heads of keys and values; 0 where they differ."""
        found = self._key_of(part)
        counts = {found.count(head) for head in found}
        return counts.pop() if len(counts) == 1 else 0

    def _key_of(self, part: LayerPart) -> list[int]:
        """By query head of a part, its head of keys and values, counted within the part."""
        heads = [head // self.group for head in self._heads_of(part.sized, part.out[1])]
        order = sorted(set(heads))
        return [order.index(head) for head in heads]

    # -- torch

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch
        import torch.nn.functional as nnf

        dim, shared = self._dim(part.sized), self._shared(part)
        # (examples, heads, tokens, channels of a head)
        q, k, v = (x.unflatten(2, (-1, dim)).transpose(1, 2) for x in inputs)
        if self.rotary is not None:
            cos, sin = _turns(k.shape[2], dim, self.rotary, k)
            q = _turned(q, take(cos, part.out[0], 0), take(sin, part.out[0], 0))
            k = _turned(k, cos, sin)
        if not shared:
            each = torch.tensor(self._key_of(part), device=q.device)
            k, v = k.index_select(1, each), v.index_select(1, each)
        causal = self.causal and _from_start(part.out[0])
        mask = None
        if self.causal and not causal:
            places = torch.arange(k.shape[2], device=q.device)
            mask = places <= take(places, part.out[0], 0)[:, None]
        y = nnf.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=shared > 1
        )
        return y.transpose(1, 2).flatten(2)

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        import torch

        q, k, v = (x.unflatten(2, (-1, self._dim(sized))) for x in inputs)
        tokens, dim = q.shape[1], q.shape[3]
        if self.rotary is not None:  # a pair of channels as a complex number, turned
            powers = torch.arange(0, dim, 2, dtype=torch.float64, device=q.device) / dim
            places = torch.arange(tokens, dtype=torch.float64, device=q.device)
            angles = torch.outer(places, self.rotary**-powers).to(q.dtype)[:, None]
            turns = torch.polar(torch.ones_like(angles), angles)
            q, k = (
                torch.view_as_real(torch.complex(*x.chunk(2, 3)) * turns).movedim(4, 3).flatten(3)
                for x in (q, k)
            )
        k, v = (x.repeat_interleave(self.group, 2) for x in (k, v))
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / dim**0.5
        if self.causal:
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(3), v).flatten(2)


def _from_start(tokens: Ranges) -> bool:
    """Whether these are the first tokens, all of them, so that a causal mask needs no telling."""
    return len(tokens) == 1 and tokens[0][0] == 0


def _turns(tokens: int, dim: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of token t times base^(-2 i / dim): (tokens, dim / 2) each."""
    import torch

    # float64, since float32 would lose the angle of late tokens
    pairs = torch.arange(0, dim, 2, dtype=torch.float64, device=like.device)
    places = torch.arange(tokens, dtype=torch.float64, device=like.device)
    angles = torch.outer(places, base ** (pairs / -dim))
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _turning(x: int, angles: int, itemsize: int, *, forward: bool) -> list[Kernel]:
    """The kernels of :func:`_turned`, and of its backward.

    Args:
        x: values.
        angles: of cosines, and of sines.
    """
    half = x // 2
    product = Kernel(half, (2 * half + angles) * itemsize)
    total = Kernel(half, 3 * half * itemsize)  # a difference, a sum
    joined = Kernel(0, 2 * x * itemsize)
    if forward:
        return [*[product] * 4, *[total] * 2, joined]
    negative = Kernel(half, 2 * half * itemsize)
    return [negative, *[product] * 4, *[total] * 2, joined]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel i and channel i + dim / 2 of every head turned in their plane (RoFormer, eq. 34)."""
    import torch

    first, second = x.chunk(2, 3)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), 3)
