"""The method's numbers: vectors, coefficients, injection, aggregation. Only numpy and torch."""
