"""What a network computes: a graph of named layers, each kind of which says all about itself.

A kind is a class, here or in a user's model file; see :mod:`orchestrator.models.layer`.
"""

from orchestrator.models.activations import GELU, ReLU, Sigmoid, SiLU, Tanh
from orchestrator.models.attention import Attention
from orchestrator.models.batch_norm import BatchNorm
from orchestrator.models.combine import Add, Concat, Flatten, Multiply, Sum
from orchestrator.models.conv import Conv
from orchestrator.models.cross_entropy import CrossEntropy
from orchestrator.models.dropout import Dropout
from orchestrator.models.embedding import Embedding, PositionEmbedding
from orchestrator.models.layer import Layer
from orchestrator.models.layer_norm import LayerNorm, RMSNorm
from orchestrator.models.linear import Linear
from orchestrator.models.model import Model, Recipe
from orchestrator.models.parameter import Constant, Normal, ParameterSpec, RunningAverage, Uniform
from orchestrator.models.pool import AveragePool, GlobalAveragePool, MaxPool
from orchestrator.models.registry import build_model, kind_names, load_model, model_names
from orchestrator.models.response_norm import ResponseNorm
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.spatial_norm import SpatialNorm
from orchestrator.models.value import INPUT, Value

__all__ = [
    "GELU",
    "INPUT",
    "Add",
    "Attention",
    "AveragePool",
    "BatchNorm",
    "Concat",
    "Constant",
    "Conv",
    "CrossEntropy",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePool",
    "Layer",
    "LayerNorm",
    "LayerPart",
    "Linear",
    "MaxPool",
    "Model",
    "Multiply",
    "Normal",
    "ParameterSpec",
    "PositionEmbedding",
    "RMSNorm",
    "ReLU",
    "Recipe",
    "ResponseNorm",
    "RunningAverage",
    "SiLU",
    "Sigmoid",
    "SizedLayer",
    "SpatialNorm",
    "Sum",
    "Tanh",
    "Uniform",
    "Value",
    "build_model",
    "kind_names",
    "load_model",
    "model_names",
]
