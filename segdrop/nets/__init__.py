"""The U-Net: its names, places for dropout, weights, and a look at it."""
