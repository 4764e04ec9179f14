"""From photos to vectors: all of it numpy and PIL, but for the runner of an artifact that needs torch itself."""
