"""MS-FFN, the multi-scale feed-forward network: expansion and multi-scale depthwise convolution."""
