"""Benchmarks: runs of recipes on models of known shapes, each in a fresh process, beside what was planned."""
