"""Secure sum: a server learns the total of its clients' numbers and of no single client's (Bonawitz et al. 2017, CCS).

Each pair of clients agrees on a mask that one adds and the other subtracts; each client adds another mask of its own. Shares of
both secrets lie with the other clients, so that the server can take off the masks of those who dropped out and the own masks
of those who answered, never both of one client. docs/secure-sum.md has the protocol and what it assumes.
"""
