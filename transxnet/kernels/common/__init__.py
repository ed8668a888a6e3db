"""What several operators share: tiles, BatchNorm statistics, GELU, 1x1 and depthwise convolutions."""
