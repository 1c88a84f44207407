"""The models: one file a paper or family."""
