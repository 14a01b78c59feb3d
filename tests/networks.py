"""Small but true members of the families of networks, for tests: a second runs several of each."""

from __future__ import annotations

from orchestrator.models import (
    GELU,
    Add,
    Attention,
    AveragePool,
    Concat,
    Conv,
    Dropout,
    Embedding,
    Flatten,
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

STD = 0.3  # of the weights: large enough for every gradient to be far above rounding


def linear(name: str, features: int, *inputs: str, bias: float | None = 0.1) -> Linear:
    return Linear(name=name, features=features, inputs=inputs, weight_std=STD, bias=bias)


def conv(
    name: str, channels: int, kernel: int, *inputs: str, stride: int = 1, groups: int = 1
) -> Conv:
    return Conv(
        name=name, channels=channels, kernel=kernel, stride=stride, padding=kernel // 2,
        groups=groups, inputs=inputs, weight_std=STD, bias=0.1,
    )  # fmt: skip


# -- sequences ------------------------------------------------------------------------------------


def gpt(*, tokens: int = 6, channels: int = 8, heads: int = 4, blocks: int = 2) -> Model:
    """GPT-2: layer norm first, learned positions, dropout behind each branch, an untied head."""
    layers: list[Layer] = [
        Embedding(name="embedding", vocabulary=12, features=channels, weight_std=STD),
        PositionEmbedding(name="position", weight_std=STD),
    ]
    before = "position"
    for n in range(blocks):
        at = f"blocks.{n}"
        layers += [
            LayerNorm(name=f"{at}.norm1", inputs=(before,)),
            linear(f"{at}.q", channels, f"{at}.norm1"),
            linear(f"{at}.k", channels, f"{at}.norm1"),
            linear(f"{at}.v", channels, f"{at}.norm1"),
            Attention(
                name=f"{at}.attention", inputs=(f"{at}.q", f"{at}.k", f"{at}.v"), heads=heads
            ),
            linear(f"{at}.project", channels),
            Dropout(name=f"{at}.drop1", p=0.2),
            Add(name=f"{at}.sum1", inputs=(before, f"{at}.drop1")),
            LayerNorm(name=f"{at}.norm2"),
            linear(f"{at}.up", 4 * channels),
            GELU(name=f"{at}.gelu", tanh=True),
            linear(f"{at}.down", channels),
            Dropout(name=f"{at}.drop2", p=0.2),
            Add(name=f"{at}.sum2", inputs=(f"{at}.sum1", f"{at}.drop2")),
        ]
        before = f"{at}.sum2"
    layers += [LayerNorm(name="norm"), linear("head", 12, bias=None)]
    return Model("gpt", (tokens,), layers)


def llama(*, tokens: int = 6, channels: int = 16, heads: int = 4, kv_heads: int = 2) -> Model:
    """Llama: RMS norm, rotary positions, grouped keys, a gated unit (SwiGLU), no biases."""
    layers: list[Layer] = [
        Embedding(name="embedding", vocabulary=12, features=channels, weight_std=STD)
    ]
    keys = channels // heads * kv_heads
    before = "embedding"
    for n in range(2):
        at = f"blocks.{n}"
        layers += [
            RMSNorm(name=f"{at}.norm1", inputs=(before,)),
            linear(f"{at}.q", channels, f"{at}.norm1", bias=None),
            linear(f"{at}.k", keys, f"{at}.norm1", bias=None),
            linear(f"{at}.v", keys, f"{at}.norm1", bias=None),
            Attention(
                name=f"{at}.attention", inputs=(f"{at}.q", f"{at}.k", f"{at}.v"),
                heads=heads, kv_heads=kv_heads, rotary=10_000.0,
            ),
            linear(f"{at}.project", channels, bias=None),
            Add(name=f"{at}.sum1", inputs=(before, f"{at}.project")),
            RMSNorm(name=f"{at}.norm2"),
            linear(f"{at}.gate", 3 * channels, f"{at}.norm2", bias=None),
            SiLU(name=f"{at}.silu"),
            linear(f"{at}.up", 3 * channels, f"{at}.norm2", bias=None),
            Multiply(name=f"{at}.product", inputs=(f"{at}.silu", f"{at}.up")),
            linear(f"{at}.down", channels, bias=None),
            Add(name=f"{at}.sum2", inputs=(f"{at}.sum1", f"{at}.down")),
        ]  # fmt: skip
        before = f"{at}.sum2"
    layers += [RMSNorm(name="norm"), linear("head", 12, bias=None)]
    return Model("llama", (tokens,), layers)


# -- images ---------------------------------------------------------------------------------------


def bottleneck(at: str, before: str, width: int, *, stride: int = 1, project: bool) -> list[Layer]:
    """ResNet's block of three convolutions; the skip is projected where shapes differ."""
    skip = f"{at}.projection" if project else before
    found: list[Layer] = [
        conv(f"{at}.conv1", width, 1, before),
        ReLU(name=f"{at}.relu1"),
        conv(f"{at}.conv2", width, 3, stride=stride),
        ReLU(name=f"{at}.relu2"),
        conv(f"{at}.conv3", 2 * width, 1),
    ]
    if project:
        found.append(conv(skip, 2 * width, 1, before, stride=stride))
    return [
        *found,
        Add(name=f"{at}.sum", inputs=(f"{at}.conv3", skip)),
        ReLU(name=f"{at}.relu3"),
    ]


def resnet(*, size: int = 14) -> Model:
    """ResNet-50's stem and three bottlenecks, two of which project; no batch norm."""
    return Model(
        "resnet",
        (3, size, size),
        [
            conv("stem", 4, 7, stride=2),
            ReLU(name="relu"),
            MaxPool(name="pool", kernel=3, stride=2, padding=1),
            *bottleneck("blocks.0", "pool", 4, project=True),
            *bottleneck("blocks.1", "blocks.0.relu3", 4, project=False),
            *bottleneck("blocks.2", "blocks.1.relu3", 4, stride=2, project=True),
            GlobalAveragePool(name="mean"),
            linear("fc", 5),
        ],
    )


def inception() -> Model:
    """GoogLeNet's block: four towers of one input, whose channels are put together."""
    return Model(
        "inception",
        (3, 8, 8),
        [
            conv("stem", 4, 3),
            ReLU(name="relu"),
            conv("a1", 4, 1, "relu"),
            ReLU(name="a"),
            conv("b1", 2, 1, "relu"),
            ReLU(name="b2"),
            conv("b3", 6, 3),
            ReLU(name="b"),
            conv("c1", 2, 1, "relu"),
            ReLU(name="c2"),
            conv("c3", 2, 5),
            ReLU(name="c"),
            MaxPool(name="d1", kernel=3, stride=1, padding=1, inputs=("relu",)),
            conv("d2", 4, 1),
            ReLU(name="d"),
            Concat(name="joined", inputs=("a", "b", "c", "d")),
            AveragePool(name="average", kernel=2, stride=2),
            Flatten(name="flat"),
            linear("fc", 5),
        ],
    )


def squeeze_excitation() -> Model:
    """A residual block whose branch is scaled by channel (SE-ResNet)."""
    return Model(
        "squeeze_excitation",
        (3, 7, 6),
        [
            conv("stem", 8, 3),
            ReLU(name="relu"),
            conv("conv", 8, 3),
            GlobalAveragePool(name="squeeze"),
            linear("reduce", 4),
            ReLU(name="relu2"),
            linear("expand", 8),
            Sigmoid(name="gate"),
            Multiply(name="scaled", inputs=("conv", "gate")),
            Add(name="sum", inputs=("scaled", "relu")),
            ReLU(name="relu3"),
            GlobalAveragePool(name="mean"),
            linear("fc", 5),
        ],
    )


def separable() -> Model:
    """MobileNet's pairs: a convolution of each channel alone, then one over channels."""
    return Model(
        "separable",
        (3, 9, 8),
        [
            conv("stem", 4, 3, stride=2),
            ReLU(name="relu"),
            conv("depth1", 4, 3, groups=4),
            ReLU(name="relu1"),
            conv("point1", 8, 1),
            ReLU(name="relu2"),
            conv("depth2", 8, 3, stride=2, groups=8),
            ReLU(name="relu3"),
            conv("point2", 12, 1),
            ReLU(name="relu4"),
            GlobalAveragePool(name="mean"),
            linear("fc", 5),
        ],
    )
