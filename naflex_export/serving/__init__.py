"""All that a loaded artifact needs to run."""
