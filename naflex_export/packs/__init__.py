"""Golden packs: what a right implementation of a model answers, for any language, and a judge of what another does."""
