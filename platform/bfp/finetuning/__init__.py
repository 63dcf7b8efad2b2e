"""Fine-tuning: sessions with labels, split by subject, to a head on an encoder and its cross-validated figures.

labels            which session is of which class, and what was left out and why (pure)
splits            subject-grouped, stratified folds (pure)
covariates        age, sex and the like as vectors, for the baseline without images (pure)
logistic          one linear head, its strength of regularisation chosen inside its training sessions
crossvalidation   a head for each fold, side by side on Ray, kept so that a stopped run goes on
tables            the split and the predictions as files
"""
