"""A trained model on a clip of your own: what is in it, the answer, the picture."""
