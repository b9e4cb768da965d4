"""Pure array mathematics: arrays in, arrays out; no Ray, no files, no globals.

Nothing here imports the rest of the package, every mistake is a ``ValueError``, and results do not depend on
how rows were batched, ordered or partitioned, nor on the device, to the precision that each module states.
"""
