"""zstandard, in the two ways it is used here: streams of any length, and frames that say how much they hold."""

import zstandard

ZstdError = zstandard.ZstdError


def compressor(level: int) -> "zstandard.ZstdCompressionObj":
    """For a stream; a checksum goes with it."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()


def decompressor(window: int) -> "zstandard.ZstdDecompressionObj":
    """For a stream that may ask for at most `window` bytes of memory to look back."""
    return zstandard.ZstdDecompressor(max_window_size=window).decompressobj()


def frame(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


def unframe(data: bytes, most: int) -> bytes:
    """What is in a frame.

    Raises:
        ZstdError: it is none, or holds nothing, or more than `most` bytes, or does not say how much.

    """
    if not 0 < zstandard.frame_content_size(data) <= most:
        raise ZstdError(f"a frame holds nothing, or more than {most} bytes, or does not say how much")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=most)
