"""Tests of the proxy service."""
