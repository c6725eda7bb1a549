"""Small models with a planted temperament: the grammar, the training, the realised truth, the shipped weights."""
