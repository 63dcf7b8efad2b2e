"""Fine-tuning: sessions with labels, split by subject, to a head on an encoder and its cross-validated figures.

labels            which session is of which class, and what was left out and why (pure)
splits            subject-grouped, stratified folds (pure)
covariates        age, sex and the like as vectors, for the baseline without images (pure)
logistic          one linear head, its strength of regularisation chosen inside its training sessions
crossvalidation   a head for each fold, side by side on Ray, kept so that a stopped run goes on
contributions     how much each slice, and each patch of it, adds to what a head says (pure)
cases             which sessions and slices are shown (pure)
session_stacks    the stacks of sessions, as training draws them
network           stacks -> what is said of a session, trained end to end from the frozen model on
tuning            one such training: its inner split, its epochs, what is kept of them
tuned_folds       trainings side by side
tables            the split and the predictions as files
"""
