"""Compiled engines in the user's cache."""
