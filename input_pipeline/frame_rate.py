"""The frame rate of a file, from the number of its frames and its duration."""

import fractions


def frame_rate(count: int, duration: float) -> fractions.Fraction:
    """Returns the constant rate, in frames per second, of `count` frames in `duration` seconds.

    This is the integer rate or the NTSC rate (integer x 1000 / 1001) that agrees with the duration to a millisecond,
    the clock of many containers. If neither agrees, it is the average rate as a simple fraction.
    """
    average = fractions.Fraction(count / duration)
    integer = fractions.Fraction(max(1, round(average)))
    standard = [rate for rate in (integer, integer * 1000 / 1001) if abs(count / rate - duration) < 0.001]
    simple = max(average.limit_denominator(1001), fractions.Fraction(1, 1001))
    return min(standard, key=lambda rate: abs(rate - average), default=simple)
