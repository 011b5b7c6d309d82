"""Differential privacy: clipping, noise and the privacy cost of releases. No federation."""
