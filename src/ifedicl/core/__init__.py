"""The method's mathematics: vectors, coefficients, injection, aggregation. It needs numpy, scipy and torch only."""
