"""Generates images that decoders stumble over: odd and damaged files as people have them, and files one byte apart."""

import random
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from tests.sharding.synthetic import encode, lossless_jpeg, photograph

HEIGHT, WIDTH = 600, 640


def scene(mode: str = "RGB") -> Image.Image:
    """A smooth picture that is large enough to be decoded at an eighth of its size."""
    coarse = np.random.default_rng(3).integers(0, 256, (9, 10, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return Image.fromarray(smooth.astype(np.uint8)).convert(mode)


def jpeg(mode: str = "RGB", **options) -> bytes:
    return encode(scene(mode), "JPEG", **{"quality": 80, **options})


def with_bad_profile(data: bytes) -> bytes:
    """Number the segments of a colour profile wrongly, as in files that were cut and pasted."""
    at = data.index(b"ICC_PROFILE\0") + 12
    return data[:at] + b"\x09" + data[at + 1 :]


def before(data: bytes, marker: int, content: bytes) -> bytes:
    """Insert bytes before a marker of the header."""
    at = data.index(bytes([0xFF, marker]))
    return data[:at] + content + data[at:]


def changed(data: bytes, marker: int, offset: int, value: int) -> bytes:
    """Set the byte at a distance from a marker of the header."""
    copy = bytearray(data)
    copy[data.index(bytes([0xFF, marker])) + offset] = value
    return bytes(copy)


def wide_png(width: int = 70_000) -> bytes:
    return encode(Image.new("RGB", (width, 4), "gray"), "PNG")


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """Insert a chunk behind the header of a PNG."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


def palette(colours: int) -> Image.Image:
    return scene().quantize(colours, Image.Quantize.FASTOCTREE)


def odd_files() -> dict[str, bytes]:
    """Files that are sound, or of which the pixels are."""
    plain, profiled = jpeg(), with_bad_profile(jpeg(icc_profile=b"x" * 100_000))
    translucent = scene("RGBA")
    translucent.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    sixteen = Image.fromarray(np.asarray(scene("L")).astype(np.uint16) * 257)
    spectrum = plain.index(b"\xff\xda") + 4 + 2 * 3 + 2
    return {
        "plain": plain,
        "4:4:4": jpeg(subsampling="4:4:4"),
        "4:2:2": jpeg(subsampling="4:2:2"),
        "4:1:1": jpeg(subsampling="4:1:1"),
        "grey": jpeg("L"),
        "progressive": jpeg(progressive=True),
        "RGB": jpeg(keep_rgb=True, subsampling="4:4:4"),
        "CMYK": jpeg("CMYK"),
        "progressive CMYK": jpeg("CMYK", progressive=True),
        "restart markers": jpeg(restart_marker_blocks=7),
        "lossless": lossless_jpeg(WIDTH, HEIGHT),
        "stray byte": before(plain, 0xDB, b"\0"),
        "stray bytes": before(before(plain, 0xC0, b"\1\2\3\xff\0"), 0xDA, b"\x77"),
        "fill bytes": before(plain, 0xC0, b"\xff\xff"),
        "bad profile": profiled,
        "bad profile, stray byte, no end mark": before(profiled, 0xDB, b"\0")[:-2],
        "no end mark": plain[:-2],
        "half an end mark": plain[:-1],
        "bytes behind the end": plain + b"trailing" * 99,
        "bad spectrum": plain[:spectrum] + b"\0" + plain[spectrum + 1 :],
        "two pictures": encode(scene(), "MPO", save_all=True, append_images=[scene()]),
        "PNG": encode(scene(), "PNG"),
        "translucent PNG": encode(translucent, "PNG"),
        "grey PNG with transparency": encode(translucent.convert("LA"), "PNG"),
        "palette PNG": encode(palette(32), "PNG", transparency=3),
        "black and white PNG": encode(scene("1"), "PNG"),
        "16-bit PNG": encode(sixteen, "PNG"),
        "PNG with a chunk of no known kind": with_chunk(encode(scene(), "PNG"), b"teST", b"x"),
        "16-bit TIFF": encode(sixteen, "TIFF"),
        "CMYK TIFF": encode(scene("CMYK"), "TIFF"),
        "WebP": encode(translucent, "WEBP", lossless=True, method=0, quality=0),
        "animated GIF": encode(palette(32), "GIF", save_all=True, append_images=[palette(8)]),
        "BMP": encode(scene(), "BMP"),
        "PPM": encode(scene(), "PPM"),
    }


def damaged_files() -> dict[str, bytes]:
    """Files whose pixels are lost, unknown or too many, and files that are no image."""
    plain, png = jpeg(), encode(scene(), "PNG")
    middle = len(plain) // 2
    cut = plain[:middle] + b"\xff\xd9"
    return {
        "empty": b"",
        "text": b"no image" * 99,
        "truncated": plain[:middle],
        "ended in the middle": cut,
        "bad profile, ended in the middle": with_bad_profile(jpeg(icc_profile=b"x" * 100_000))[:-middle] + b"\xff\xd9",
        "12-bit": changed(plain, 0xC0, 4, 12),
        "hierarchical": changed(plain, 0xC0, 1, 0xC5),
        "lossless, too large": lossless_jpeg(16_000, 16_000)[:1000],
        "no height": changed(changed(plain, 0xC0, 5, 0), 0xC0, 6, 0),
        "wide PNG": wide_png(),
        "half a PNG": png[: len(png) // 2],
        "PNG with a changed byte": png[: len(png) // 2] + bytes([png[len(png) // 2] ^ 1]) + png[len(png) // 2 + 1 :],
        "32-bit TIFF": encode(Image.fromarray(np.ones((HEIGHT, WIDTH), np.float32)), "TIFF"),
        "half a WebP": encode(scene(), "WEBP")[:2000],
        "AVIF": encode(scene(), "AVIF"),
    }


def mutants(count: int, seed: int = 0) -> dict[str, bytes]:
    """JPEGs with one byte changed, half of them in the header."""
    chance = random.Random(seed)
    sources = (jpeg(), jpeg(progressive=True), jpeg("L"), jpeg(icc_profile=b"x" * 500), photograph(5, 500, 400))
    files = {}
    for number in range(count):
        data = bytearray(chance.choice(sources))
        at = chance.randrange(2, 700 if number % 2 else len(data))
        data[at] = chance.randrange(256)
        files[f"byte {at} of mutant {number}"] = bytes(data)
    return files
