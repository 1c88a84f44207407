"""Long videos: the predictions of windows, the segments they make, and the files of both."""
