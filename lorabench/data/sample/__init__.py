"""Synthetic sample messages, written for this project; see README.md here."""
