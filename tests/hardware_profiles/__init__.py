"""Tests of the hardware profiles."""
