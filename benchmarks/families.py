"""Members of the families of networks, large enough to have a peak of tens of MB."""

from __future__ import annotations

from orchestrator.models import (
    GELU,
    Add,
    Attention,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Embedding,
    GlobalAveragePool,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    Model,
    Multiply,
    PositionEmbedding,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
)


def conv(
    name: str, channels: int, kernel: int, *inputs: str, stride: int = 1, groups: int = 1
) -> Conv:
    """A convolution without a bias, that keeps the size at stride 1."""
    return Conv(
        name=name, channels=channels, kernel=kernel, stride=stride, padding=kernel // 2,
        groups=groups, inputs=inputs, bias=None,
    )  # fmt: skip


def normed(layer: Conv, group: int | None) -> list[Layer]:
    """A convolution, its batch norm and a ReLU; the last is named like the convolution."""
    at = layer.name
    return [layer, BatchNorm(name=f"{at}.norm", group=group), ReLU(name=f"{at}.relu")]


def bottleneck(
    at: str, before: str, width: int, group: int | None, *, stride: int = 1, project: bool
) -> list[Layer]:
    """ResNet's block of three convolutions, four times as wide at its end as inside."""
    found: list[Layer] = [
        *normed(conv(f"{at}.conv1", width, 1, before), group),
        *normed(conv(f"{at}.conv2", width, 3, stride=stride), group),
        conv(f"{at}.conv3", 4 * width, 1),
        BatchNorm(name=f"{at}.norm3", group=group),
    ]
    skip = before
    if project:
        skip = f"{at}.skip"
        found += [
            conv(f"{at}.projection", 4 * width, 1, before, stride=stride),
            BatchNorm(name=skip, group=group),
        ]
    return [*found, Add(name=f"{at}.sum", inputs=(f"{at}.norm3", skip)), ReLU(name=f"{at}.relu")]


def resnet(*, size: int = 64, width: int = 16, group: int | None = None) -> Model:
    """ResNet-50's stem and three bottlenecks, two of which project."""
    return Model(
        "resnet",
        (3, size, size),
        [
            *normed(conv("stem", width, 7, stride=2), group),
            MaxPool(name="pool", kernel=3, stride=2, padding=1),
            *bottleneck("blocks.0", "pool", width, group, project=True),
            *bottleneck("blocks.1", "blocks.0.relu", width, group, project=False),
            *bottleneck("blocks.2", "blocks.1.relu", 2 * width, group, stride=2, project=True),
            GlobalAveragePool(name="mean"),
            Linear(name="fc", features=10),
        ],
    )


def inception(*, size: int = 32, width: int = 16) -> Model:
    """A stem and GoogLeNet's first block (3a), channels in its proportions; no batch norm."""

    def tower(at: str, *layers: Conv) -> list[Layer]:
        found: list[Layer] = []
        for n, layer in enumerate(layers):
            found += [layer, ReLU(name=at if layer is layers[-1] else f"{at}.relu{n}")]
        return found

    return Model(
        "inception",
        (3, size, size),
        [
            conv("stem", 12 * width, 3),
            ReLU(name="relu"),
            *tower("a", conv("a1", 4 * width, 1, "relu")),
            *tower("b", conv("b1", 6 * width, 1, "relu"), conv("b2", 8 * width, 3)),
            *tower("c", conv("c1", width, 1, "relu"), conv("c2", 2 * width, 5)),
            MaxPool(name="d1", kernel=3, stride=1, padding=1, inputs=("relu",)),
            *tower("d", conv("d2", 2 * width, 1)),
            Concat(name="joined", inputs=("a", "b", "c", "d")),
            GlobalAveragePool(name="mean"),
            Linear(name="fc", features=10),
        ],
    )  # fmt: skip


def squeeze_excitation(
    *, size: int = 32, width: int = 32, blocks: int = 2, group: int | None = None
) -> Model:
    """Residual blocks whose branch is scaled by channel (SE-ResNet), with batch norm."""
    layers = normed(conv("stem", width, 3), group)
    before = "stem.relu"
    for n in range(blocks):
        at = f"blocks.{n}"
        layers += [
            *normed(conv(f"{at}.conv1", width, 3, before), group),
            conv(f"{at}.conv2", width, 3),
            BatchNorm(name=f"{at}.norm2", group=group),
            GlobalAveragePool(name=f"{at}.squeeze"),
            Linear(name=f"{at}.reduce", features=width // 4),
            ReLU(name=f"{at}.relu2"),
            Linear(name=f"{at}.expand", features=width),
            Sigmoid(name=f"{at}.gate"),
            Multiply(name=f"{at}.scaled", inputs=(f"{at}.norm2", f"{at}.gate")),
            Add(name=f"{at}.sum", inputs=(f"{at}.scaled", before)),
            ReLU(name=f"{at}.relu"),
        ]
        before = f"{at}.relu"
    layers += [GlobalAveragePool(name="mean"), Linear(name="fc", features=10)]
    return Model("squeeze_excitation", (3, size, size), layers)


def separable(*, size: int = 64, width: int = 16, group: int | None = None) -> Model:
    """MobileNet's first pairs: a convolution of each channel alone, then one over channels."""
    layers = normed(conv("stem", width, 3, stride=2), group)
    channels = width
    for n, (features, stride) in enumerate(((2 * width, 1), (4 * width, 2), (4 * width, 1))):
        layers += [
            *normed(conv(f"depth{n}", channels, 3, stride=stride, groups=channels), group),
            *normed(conv(f"point{n}", features, 1), group),
        ]
        channels = features
    layers += [GlobalAveragePool(name="mean"), Linear(name="fc", features=10)]
    return Model("separable", (3, size, size), layers)


def gpt(
    *, tokens: int = 64, channels: int = 128, heads: int = 4, blocks: int = 2, vocabulary: int = 512
) -> Model:
    """GPT-2: learned positions, dropout behind each branch, its head tied to the embedding."""
    layers: list[Layer] = [
        Embedding(name="embedding", vocabulary=vocabulary, features=channels),
        PositionEmbedding(name="position"),
    ]
    before = "position"
    for n in range(blocks):
        at = f"blocks.{n}"
        qkv = tuple(f"{at}.{name}" for name in "qkv")
        layers += [
            LayerNorm(name=f"{at}.norm1", inputs=(before,)),
            *(Linear(name=name, features=channels, inputs=(f"{at}.norm1",)) for name in qkv),
            Attention(name=f"{at}.attention", inputs=qkv, heads=heads),
            Linear(name=f"{at}.project", features=channels),
            Dropout(name=f"{at}.drop1", p=0.1),
            Add(name=f"{at}.sum1", inputs=(before, f"{at}.drop1")),
            LayerNorm(name=f"{at}.norm2"),
            Linear(name=f"{at}.up", features=4 * channels),
            GELU(name=f"{at}.gelu", tanh=True),
            Linear(name=f"{at}.down", features=channels),
            Dropout(name=f"{at}.drop2", p=0.1),
            Add(name=f"{at}.sum2", inputs=(f"{at}.sum1", f"{at}.drop2")),
        ]
        before = f"{at}.sum2"
    layers += [
        LayerNorm(name="norm"),
        Linear(name="head", features=vocabulary, bias=None, tied="embedding.weight"),
    ]
    return Model("gpt", (tokens,), layers)


def llama(
    *, tokens: int = 64, channels: int = 128, heads: int = 4, kv_heads: int = 2,
    blocks: int = 2, vocabulary: int = 512,
) -> Model:  # fmt: skip
    """Llama: RMS norm, rotary positions, grouped keys, a gated unit (SwiGLU), no biases."""

    def linear(name: str, features: int, *inputs: str) -> Linear:
        return Linear(name=name, features=features, inputs=inputs, bias=None)

    layers: list[Layer] = [Embedding(name="embedding", vocabulary=vocabulary, features=channels)]
    keys = channels // heads * kv_heads
    before = "embedding"
    for n in range(blocks):
        at = f"blocks.{n}"
        layers += [
            RMSNorm(name=f"{at}.norm1", inputs=(before,)),
            linear(f"{at}.q", channels, f"{at}.norm1"),
            linear(f"{at}.k", keys, f"{at}.norm1"),
            linear(f"{at}.v", keys, f"{at}.norm1"),
            Attention(
                name=f"{at}.attention", inputs=(f"{at}.q", f"{at}.k", f"{at}.v"),
                heads=heads, kv_heads=kv_heads, rotary=10_000.0,
            ),
            linear(f"{at}.project", channels),
            Add(name=f"{at}.sum1", inputs=(before, f"{at}.project")),
            RMSNorm(name=f"{at}.norm2"),
            linear(f"{at}.gate", 3 * channels, f"{at}.norm2"),
            SiLU(name=f"{at}.silu"),
            linear(f"{at}.up", 3 * channels, f"{at}.norm2"),
            Multiply(name=f"{at}.product", inputs=(f"{at}.silu", f"{at}.up")),
            linear(f"{at}.down", channels),
            Add(name=f"{at}.sum2", inputs=(f"{at}.sum1", f"{at}.down")),
        ]  # fmt: skip
        before = f"{at}.sum2"
    layers += [RMSNorm(name="norm"), linear("head", vocabulary)]
    return Model("llama", (tokens,), layers)
