"""The videos that --video names: a file, a folder, frames, a list in any form of the product."""

import pytest

from input_pipeline import DataError
from input_pipeline.errors import DecodeError
from input_pipeline.videos import open_video
from vidformers import ConfigError
from vidformers.inference.clip import video_records
from vidformers.inference.commands import find_videos

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b, c.mp4", "d e.mp4", "sub/f.mp4", "data/train/g.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for number in range(3):
        (tmp_path / "frames" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "frames" / "x" / f"img_{number:05}.jpg").touch()
    return tmp_path


def listed(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return [path.removeprefix(f"{folder}/") for path in find_videos(str(folder / name), str(folder / "data"))]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["", "path,label", "path"])
def test_a_csv_of_the_pipeline_is_a_list_of_videos(folder, header, encoding, end):
    lines = [header, "a.mp4,0", '"b, c.mp4",wave left', "b, c.mp4", "d e.mp4", "", "train/g.mp4,1", "gone.mp4,1"]
    videos = listed(folder, "list.csv", end.join(lines), encoding)
    assert videos == ["a.mp4", "b, c.mp4", "b, c.mp4", "d e.mp4", "data/train/g.mp4", "gone.mp4"]


@pytest.mark.parametrize("header", ["", "path,label,start,end", "Label, path,end,start"])
def test_parts_of_a_list_keep_their_start_and_end(folder, header):
    rows = [
        ("a.mp4", "hop", "1.5", "4"),
        ('"b, c.mp4"', "hop", "", "2"),
        ("train/g.mp4", "run", "3", ""),
        ("d e.mp4", "", "", ""),
    ]
    lines = [
        ",".join((label, path, end, start) if "Label" in header else (path, label, start, end))
        for path, label, start, end in rows
    ]
    videos = listed(folder, "parts.csv", "\n".join([header, *lines]))
    assert videos == ["a.mp4#t=1.5,4", "b, c.mp4#t=,2", "data/train/g.mp4#t=3,", "d e.mp4"]
    assert [(record.path, record.start, record.end, record.name) for record in video_records(videos)] == [
        ("a.mp4", 1.5, 4, "a.mp4#t=1.5,4"), ("b, c.mp4", None, 2, "b, c.mp4#t=,2"),
        ("data/train/g.mp4", 3, None, "data/train/g.mp4#t=3,"), ("d e.mp4", None, None, "d e.mp4"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"parts\.csv line 1: end=2 is not after start=3"):
        listed(folder, "parts.csv", "a.mp4,hop,3,2")


def test_a_part_may_be_given_by_itself_and_a_file_of_such_a_name_is_a_file(folder):
    part = f"{folder}/a.mp4#t=1,2.5"
    assert find_videos(part) == [part] and video_records([part])[0].end == 2.5
    (folder / "a.mp4#t=1,2.5").touch()
    assert video_records(find_videos(part))[0].path == part and not video_records([part])[0].is_part


def test_a_video_that_does_not_exist_is_refused(folder):
    with pytest.raises(ConfigError, match=r"none\.mp4 does not exist"):
        find_videos(f"{folder}/none.mp4")


def test_an_address_is_refused_unless_it_is_the_name_of_a_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="--video=7 is an address or a camera, which --mode=predict reads"):
        find_videos("7")
    (folder / "7").touch()
    assert find_videos("7") == ["7"]


def test_the_extension_of_a_list_may_be_in_capitals(folder):
    (folder / "LIST.CSV").write_text("path,label\n1.mp4,0\n")
    assert find_videos(str(folder / "LIST.CSV")) == [str(folder / "1.mp4")]


def test_a_list_may_have_labels_and_paths_with_blanks(folder):
    assert listed(folder, "list.txt", "a.mp4 0\r\nd e.mp4\r\nd e.mp4 3\nsub/f.mp4\nframes/x\nno e.mp4\n") == [
        "a.mp4", "d e.mp4", "d e.mp4", "sub/f.mp4", "frames/x", "no e.mp4",
    ]  # fmt: skip


def test_a_folder_is_searched_with_its_links_and_its_folders_of_frames(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "h.mp4").touch()
    (elsewhere / "back").symlink_to(folder)
    (folder / "link").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / ".hidden.mp4").touch()
    (folder / "sub" / "preview1.jpg").touch()  # beside a video
    names = ["a.mp4", "b, c.mp4", "d e.mp4", "data/train/g.mp4", "frames/x", "link/h.mp4", "sub/f.mp4"]
    assert find_videos(str(folder)) == [f"{folder}/{name}" for name in names]
    assert find_videos(str(folder / "frames" / "x")) == [f"{folder}/frames/x"]


def test_what_holds_no_videos_is_refused(folder):
    (folder / "empty.csv").write_text("path,label\r\n")
    (folder / "none").mkdir()
    for name, words in (("empty.csv", "holds no videos"), ("none", "holds no videos"), ("i.mp4", "does not exist")):
        with pytest.raises(ConfigError, match=f"{name} {words}. Give a video, "):
            find_videos(str(folder / name))


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_an_address_in_a_list_is_named_as_an_address(name, tmp_path):
    address = "https://host/video.mp4"
    (tmp_path / name).write_text(f"{address}\n")
    assert find_videos(str(tmp_path / name)) == [address]
    for part in (address, f"{address}#t=1,2"):
        with pytest.raises(DecodeError, match=rf"^{address} is an address, and clips are read from files\."):
            open_video(video_records([part])[0])
