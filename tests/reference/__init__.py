"""Tests of lare2_ref."""
