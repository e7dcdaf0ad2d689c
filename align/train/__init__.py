"""The training stages: each module's `train(config)` runs one, on `align.train.base`."""
