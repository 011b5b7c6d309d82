"""NVIDIA FLARE as the engine: separate machines, mTLS identities, signed start-up kits. No method logic is in here.

Only ``controller``, ``executor``, ``readmission``, ``kits`` and ``console`` import ``nvflare``.
"""
