"""Augmentations of batches of images, texts and sounds: pure, keyed, on the device, with shapes that never change under jit."""
