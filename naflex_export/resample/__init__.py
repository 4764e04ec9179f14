"""The resize of a learned grid, as weights and sums."""
