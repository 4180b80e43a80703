"""Measurements of kdaudit on data and models whose ground truth is known. Nothing in `kdaudit` imports this."""
