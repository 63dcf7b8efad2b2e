"""Inference: raw scans of a new cohort -> one row of predictions a session, streamed.

ready       a session's stacks, brought into the form that a model takes (CPU)
predictor   a model that predicts ready sessions, one after another
pipeline    both on Ray Data: scans are prepared on CPUs while copies of the model predict
kept        the rows on disk: parts that are written whole, so that a session is predicted exactly once
"""
