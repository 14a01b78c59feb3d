"""What a network computes: named layers with shapes, connectivity, parameters, multiply-adds.

Descriptions only; the torch side stands apart in :mod:`orchestrator.models.torch_layers`.
"""

from orchestrator.models.layers import (
    Conv,
    Dropout,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    ResponseNorm,
    Shape,
    SizedLayer,
    SpatialNorm,
    Sum,
    Term,
)
from orchestrator.models.model import Model, Recipe
from orchestrator.models.ranges import Ranges
from orchestrator.models.registry import build_model, load_model, model_names

__all__ = [
    "Conv",
    "Dropout",
    "Layer",
    "Linear",
    "MaxPool",
    "Model",
    "Ranges",
    "ReLU",
    "Recipe",
    "ResponseNorm",
    "Shape",
    "SizedLayer",
    "SpatialNorm",
    "Sum",
    "Term",
    "build_model",
    "load_model",
    "model_names",
]
