"""Who and where a rank is, and how a run spreads over ranks."""
