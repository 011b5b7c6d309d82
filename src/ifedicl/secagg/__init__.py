"""Secure sum: a server learns the total of its clients' numbers and of no single client's (Bonawitz et al. 2017, CCS).

Each pair of clients agrees on a pairwise mask: one adds it, the other subtracts it. Each client also adds a mask of its own.
The other clients hold shares of both secrets. With them the server removes the pairwise masks of clients that dropped out and
the own masks of survivors, never both of one client. docs/secure-sum.md states the protocol and its assumptions.
"""
