"""A JPEG decoder in C that decodes a rectangle of an image; `region` is its Python interface."""
