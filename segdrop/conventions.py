"""The numbers that files, networks and scores share."""

MULTIPLE = 32  # of the sides of what the network sees: the U-Net halves them five times
TILE, OVERLAP = 1024, 256  # pixels; larger images are predicted in tiles
IGNORED = 255  # the class index, in every mask that leaves this module, of a pixel that is not scored
LEAST_DOUBT = 1e-7  # distance of a probability from 0 and 1 before its logit is taken: what float32 can tell from 1
