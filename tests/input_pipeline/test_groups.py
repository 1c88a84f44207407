"""data.group is suggested where file names show groups of videos, and not where they hold numbers of other kinds."""

import re

import pytest

from input_pipeline.drawn_split import Item, group_of, suggested_group
from tests.own_videos import CLASSES, CLIPS, FORMATS, NAMES


def in_classes(*names):
    """Returns videos of two classes with these names, in the folder of each class."""
    return [Item(path, (label,), path) for label in (0, 1) for name in names if (path := f"{'xy'[label]}/{name}")]


WITH_GROUPS = {
    "UCF101": in_classes(*(f"v_Jump_g{i:02}_c{j:02}.avi" for i in range(6) for j in range(3))),
    "UCF101, a few of each group": in_classes(*(f"v_Jump_g{i:02}_c{j:02}.avi" for i in range(6) for j in (2, 7))),
    "HMDB": in_classes(*(f"{film}_run_f_cm_np1_ba_bad_{j}.avi" for film in "abcdef" for j in range(3))),
    "matches": in_classes(*(f"match{i}_{j:03}.mp4" for i in range(6) for j in range(4))),
    "matches in both classes": [
        Item(path, (label,), path)
        for i in range(6)
        for label in (0, 1)
        for j in range(4)
        if (path := f"{'xy'[label]}/match{i}_{2 * j + label:03}.mp4")
    ],
    "takes": in_classes(*(f"subject {i} take ({j}).mov" for i in range(6) for j in (1, 2, 4))),
    "people": in_classes(
        *(f"{name}{j}.mp4" for name in ("anna", "ben", "cem", "dora", "emma", "fritz") for j in (1, 2))
    ),
    "cameras": in_classes(*(f"{i}-cam{j}.mp4" for i in range(1, 7) for j in (1, 2, 3))),
}
TAKEN = [f"20230{month}{day:02}" for month in range(1, 7) for day in (1, 2, 4, 5, 8)]
WITHOUT_GROUPS = {
    "one camera": in_classes(*(f"{i}-cam2.mp4" for i in range(6))),
    "numbers": in_classes(*(f"{i}.webm" for i in range(30))),
    "a phone": in_classes(*(f"IMG_{1000 + i}.MOV" for i in range(30)), *(f"IMG_E{1000 + i}.MOV" for i in range(30))),
    "numbers with words": in_classes(*(f"{word} {i}.mp4" for i, word in enumerate(6 * ["a", "b", "c", "d", "e", "f"]))),
    "times": in_classes(*(f"VID_{day}_{hour}3015.mp4" for day in TAKEN for hour in (11, 14))),
    "times of another phone": in_classes(*(f"PXL_{day}_{hour}3015123.mp4" for day in TAKEN for hour in (11, 14))),
    "dates": in_classes(*(f"{day[:4]}-{day[4:6]}-{day[6:]}.mp4" for day in TAKEN)),
    "dates after a word": in_classes(*(f"garden_{day}.mp4" for day in TAKEN)),
    "Kinetics": in_classes(*(f"{chr(97 + i) * 11}_{i:06}_{i + 10:06}.mp4" for i in range(26))),
    "the made videos": [
        Item(path, (label,), path)
        for label in CLASSES
        for i in range(CLIPS)
        if (path := f"{label}/{NAMES[i % len(NAMES)].format(i)}{FORMATS[i % len(FORMATS)].suffix}")
    ],
}


@pytest.mark.quick
@pytest.mark.parametrize("name", WITH_GROUPS)
def test_groups_are_suggested_where_names_show_at_least_five_of_them(name):
    videos = WITH_GROUPS[name]
    pattern = re.compile(suggested_group(videos))
    groups = {(label, group_of(video, pattern)) for video in videos for label in video.classes}
    assert len(groups) == 2 * 6
    four = sorted({group_of(video, pattern) for video in videos})[:4]
    assert suggested_group([video for video in videos if group_of(video, pattern) in four]) is None


@pytest.mark.quick
@pytest.mark.parametrize("name", WITHOUT_GROUPS)
def test_numbers_dates_and_times_in_names_show_no_groups(name):
    assert suggested_group(WITHOUT_GROUPS[name]) is None
