"""From files to token rows."""
