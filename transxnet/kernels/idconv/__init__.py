"""IDConv, the input-dependent depthwise convolution: adaptive means, kernel generator, convolution."""
