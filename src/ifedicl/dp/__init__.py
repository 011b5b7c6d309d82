"""Differential privacy: bounding what one example changes, noise, and what releases cost. No federation."""
