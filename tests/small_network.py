"""A network for tests that train on workers: AlexNet with a sixteenth of its channels."""

SMALL = "{name: alexnet2012, width: 0.0625, image_size: 64, classes: 16}"
