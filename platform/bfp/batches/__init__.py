"""Batches: slice store -> batches of stacks, in a planned order.

    plan     which stack stands at which place of which batch: a pure function of the seed and the step
    held_out subjects that training never sees
    reader   the planned batches, read ahead by a few threads
    absent   what is shown in place of a modality that a stack lacks

Randomness of crops and masks is pretraining's; here a batch is uint8 pixels as they lie in the store.
"""
