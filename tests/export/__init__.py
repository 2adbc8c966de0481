"""Tests of lare2_export."""
