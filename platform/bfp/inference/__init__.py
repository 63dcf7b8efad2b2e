"""Inference: raw scans of a new cohort -> one row of predictions a session, or one mask, streamed.

ready, way_back         a session's stacks, brought into the form that a model takes (CPU)
predictor, segmenting   a model that predicts ready sessions, or segments them
pipeline                both on Ray Data: scans are prepared on CPUs while copies of the model work
outcomes, kept          what came of each session, and its rows on disk: parts that are written whole, so that a session
                        is predicted exactly once
pseudonyms              names that tell nobody who a session is
"""
