"""Figures that say how good a prediction is, with intervals that respect subjects; arrays in, numbers out, no Ray."""
