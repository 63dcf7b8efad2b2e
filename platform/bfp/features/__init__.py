"""Features: stacks -> one vector each, computed once and shared by everything that is judged on them.

tokens       pixels -> class and patch tokens of an encoder
describe     the two ways from a stack to a vector: an encoder's tokens, grey-value histograms
extraction   the vectors of a store's stacks, by chunks (pure but for reading the store)
kept         the same on Ray, each chunk kept as a file, so that nothing is computed twice
sessions     vectors of stacks -> one vector a session
"""
