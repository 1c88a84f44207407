"""What a model looked at: relevance of patches and frames, and pictures of it."""
