"""The adapter: what a federation ends with, and what classifies text."""

from ifedicl.adapter.adapter import Adapter, Classifier, Prediction
from ifedicl.adapter.format import FORMAT_VERSION

__all__ = ["FORMAT_VERSION", "Adapter", "Classifier", "Prediction"]
