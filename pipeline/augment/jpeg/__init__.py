"""A decoder of our own, in C, for a rectangle of a JPEG; `region` is its face in Python."""
