"""Tests of the bench: that it counts correctly; nothing here asserts a speed."""
