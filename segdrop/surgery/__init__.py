"""Layers put into any functional Keras model, taken out, sampled and proved."""
