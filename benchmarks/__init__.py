"""Comparisons, one command each. Speed and quality are measured here, never asserted in a test."""
