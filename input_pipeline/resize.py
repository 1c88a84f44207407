"""Resizing of crops: bilinear by OpenCV, or bicubic by Pillow."""

import cv2
import numpy as np

METHODS = ("bilinear", "bicubic")


def resize_box(frame, box, size: int, method: str):
    """Resizes one box of a frame to a square.

    'bilinear' interpolates between 2 x 2 pixels of the box, as `interpolate` of PyTorch and `tf.image.resize` do. If a
    side shrinks by more than two, it averages areas instead, because interpolation would skip pixels.

    'bicubic' is the filter of `Image.resize` in Pillow: cubic convolution (Keys, 1981) with a = -1/2, which widens with
    the factor of shrinking, so that it skips no pixels. At the edges of the box it reads the pixels beyond them. This
    is the same as resizing the whole frame and then cropping it.

    Args:
        frame: (y, x, 3) uint8.
        box: (top, left, height, width) in whole pixels, within the frame.
        size: pixels, side of the result.
        method: one of `METHODS`.

    Returns:
        (size, size, 3) uint8.
    """
    top, left, height, width = box
    if method == "bilinear":
        interpolation = cv2.INTER_AREA if max(height, width) > 2 * size else cv2.INTER_LINEAR
        window = frame[top : top + height, left : left + width]
        return cv2.resize(window, (size, size), interpolation=interpolation)
    from PIL import Image  # not at the top: most runs do not need it in their workers

    edges = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC, edges))
