"""The gate: a candidate's outputs beside those of the untouched eager model."""
