"""The adapter: what a federation ends with, and what classifies text."""

from ifedicl.adapter.adapter import Adapter
from ifedicl.adapter.classifier import Classifier, Prediction
from ifedicl.adapter.format import FORMAT_VERSION
from ifedicl.adapter.on_model import OnModel

__all__ = ["FORMAT_VERSION", "Adapter", "Classifier", "OnModel", "Prediction"]
