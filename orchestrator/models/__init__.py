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
    SizedLayer,
    SpatialNorm,
    Sum,
)
from orchestrator.models.model import Model, Recipe
from orchestrator.models.registry import build_model, load_model, model_names

__all__ = [
    "Conv",
    "Dropout",
    "Layer",
    "Linear",
    "MaxPool",
    "Model",
    "ReLU",
    "Recipe",
    "ResponseNorm",
    "SizedLayer",
    "SpatialNorm",
    "Sum",
    "build_model",
    "load_model",
    "model_names",
]
