"""Fits of laws to points: robust least squares, intervals, comparison on held-out points."""
