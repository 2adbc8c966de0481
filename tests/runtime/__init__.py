"""Tests of lare2_rt."""
