"""Whether an index of vectors has to be built anew: one artifact searching what another has embedded."""
