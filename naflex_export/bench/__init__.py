"""How fast and how large a model or an artifact is, beside eager."""
