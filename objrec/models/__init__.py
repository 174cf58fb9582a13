"""The LightningModule, backbones and the model folder."""
