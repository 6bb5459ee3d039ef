"""What a run keeps on disk: its `adapter`, which others load, and the `savepoint` from which a cut run goes on.

Both are there whole or not at all. Imports wings from `distributed` downward.
"""
