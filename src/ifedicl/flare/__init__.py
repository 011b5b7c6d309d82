"""NVIDIA FLARE as the engine: separate machines, mTLS identities, signed start-up kits. No method logic is in here.

Only ``server``, ``executor``, ``readmission``, ``kits`` and ``console`` import ``nvflare``; the rest of ifedicl does without.
"""
