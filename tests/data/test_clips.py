"""Videos: frames sampled from files made of moving scenes, and the layouts of MSR-VTT, MSVD and LSMDC."""

import json
from pathlib import Path

import pytest
import torch

from tuwen.data.corpora.scenes.moving import Moving
from tuwen.data.corpus import BrokenImage
from tuwen.data.open import open_corpus
from tuwen.data.video import frames_of
from tuwen.errors import UserError

av = pytest.importorskip("av")
MOVING = Moving("test", 4, side=64, frames=12)


def record(path: Path, clip: torch.Tensor, rate: int = 6) -> None:
    """A video file of the frames [F, 3, H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *clip.shape[2:], "yuv420p", 4_000_000
        for picture in clip:
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).numpy(), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def near(found: torch.Tensor, want: torch.Tensor) -> bool:
    """Alike but for compression."""
    return float((found.float() - want.float()).abs().mean()) < 8


@pytest.mark.parametrize("ending", ["mp4", "avi", "mkv"])
def test_frames_are_those_in_the_middle_of_equal_parts(tmp_path, ending):
    clip = MOVING.clip(0)
    record(tmp_path / f"a.{ending}", clip)
    for count, places in ((4, [1, 4, 7, 10]), (12, list(range(12))), (1, [6]), (3, [2, 6, 10])):
        found = frames_of(tmp_path / f"a.{ending}", count)
        for k, place in enumerate(places):
            errors = [float((found[k].float() - other.float()).abs().mean()) for other in clip]
            assert errors.index(min(errors)) == place, (count, k)
            assert near(found[k], clip[place])


def test_a_video_shorter_than_asked_repeats_frames(tmp_path):
    record(tmp_path / "a.mp4", MOVING.clip(1)[:2])
    found = frames_of(tmp_path / "a.mp4", 6)
    assert len(found) == 6
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[5])


def test_damaged_files_are_broken_pictures(tmp_path):
    with pytest.raises(BrokenImage, match="no such file"):
        frames_of(tmp_path / "none.mp4", 2)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    record(tmp_path / "whole.mp4", MOVING.clip(0))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:300])
    for name in ("text", "empty", "cut"):
        with pytest.raises(BrokenImage) as told:
            frames_of(tmp_path / f"{name}.mp4", 2)
        assert told.value.reason == "video"


def msrvtt(folder: Path, listed: bool) -> None:
    videos = [{"video_id": f"video{k}", "split": ("train", "train", "validate", "test")[k]} for k in range(4)]
    said = [{"sen_id": k, "video_id": f"video{k % 4}", "caption": f"sentence {k}"} for k in range(8)]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": said}))
    if listed:
        (folder / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo2\n")
        (folder / "MSRVTT_JSFUSION_test.csv").write_text(
            "key,vid_key,video_id,sentence\nret0,msr3,video3,only this one\n"
        )


def told(corpus) -> dict[str, list[str]]:
    return {corpus.record(row).id: corpus.record(row).texts["en"] for row in range(len(corpus))}


def test_msrvtt_by_its_own_splits_and_by_the_published_lists(tmp_path):
    for k in range(4):
        record(tmp_path / "videos" / "all" / f"video{k}.mp4", MOVING.clip(k))
    msrvtt(tmp_path, listed=False)
    assert told(open_corpus(f"msrvtt:{tmp_path}", "train")) == {
        "video0": ["sentence 0", "sentence 4"],
        "video1": ["sentence 1", "sentence 5"],
    }
    assert list(told(open_corpus(f"msrvtt:{tmp_path}", "val"))) == ["video2"]
    msrvtt(tmp_path, listed=True)
    assert list(told(open_corpus(f"msrvtt:{tmp_path}", "train"))) == ["video0", "video2"]
    test = open_corpus(f"msrvtt:{tmp_path},frames=4", "test")
    assert told(test) == {"video3": ["only this one"]}
    assert test.clip(0).shape == (4, 3, 64, 64)
    assert near(test.clip(0)[1], MOVING.clip(3)[4])
    assert test.fingerprint != open_corpus(f"msrvtt:{tmp_path},frames=5", "test").fingerprint


def test_msvd(tmp_path):
    for k in range(2):
        record(tmp_path / "YouTubeClips" / f"ab-_{k}_1_5.avi", MOVING.clip(k))
    lines = [
        "# a comment line",
        "ab-_0_1_5 a man runs",
        "ab-_1_1_5 a cat sleeps",
        "ab-_0_1_5 someone runs",
        "gone_1_2 lost",
    ]
    (tmp_path / "AllVideoDescriptions.txt").write_text("\n".join(lines))
    (tmp_path / "train_list.txt").write_text("ab-_0_1_5\ngone_1_2\n")
    (tmp_path / "test_list.txt").write_text("ab-_1_1_5\n")
    train = open_corpus(f"msvd:{tmp_path}", "train")
    assert told(train) == {"ab-_0_1_5": ["a man runs", "someone runs"]}
    assert train.skipped == {"missing": 1}
    assert told(open_corpus(f"msvd:{tmp_path}", "test")) == {"ab-_1_1_5": ["a cat sleeps"]}
    with pytest.raises(UserError, match=r"val_list\.txt: not there"):
        open_corpus(f"msvd:{tmp_path}", "val")


def test_lsmdc(tmp_path):
    record(tmp_path / "avi" / "0001_A_Film" / "0001_A_Film_00.00.51.926-00.00.54.129.avi", MOVING.clip(0))
    row = "0001_A_Film_00.00.51.926-00.00.54.129\t00.00.51.926\t00.00.54.129\t00.00.51\t00.00.54\tSOMEONE walks."
    (tmp_path / "LSMDC16_annos_training.csv").write_text(row + "\n")
    assert list(told(open_corpus(f"lsmdc:{tmp_path}", "train")).values()) == [["SOMEONE walks."]]
    (tmp_path / "LSMDC16_annos_val.csv").write_text("0001_A_Film,SOMEONE walks.\n")
    with pytest.raises(UserError, match=r"val\.csv:1: 1 columns"):
        open_corpus(f"lsmdc:{tmp_path}", "val")


@pytest.mark.parametrize(
    ("location", "split", "message"),
    [
        ("msrvtt:{}/none", "train", "no such folder"),
        ("msrvtt:{}", "train", "MSRVTT_data.json: not there"),
        ("msrvtt:{},frames=0", "train", "a number from 1 to 64"),
        ("msvd:{}", "all", "no split 'all'"),
    ],
)
def test_what_is_not_there_is_told(tmp_path, location, split, message):
    with pytest.raises(UserError, match=message):
        open_corpus(location.format(tmp_path), split)


def test_hostile_annotations(tmp_path):
    path = tmp_path / "MSRVTT_data.json"
    for content in ("{", "[]", '{"videos": [{"video_id": 1}], "sentences": []}', '{"videos": [], "sentences": [{}]}'):
        path.write_text(content)
        with pytest.raises(UserError):
            open_corpus(f"msrvtt:{tmp_path}", "train")
    msrvtt(tmp_path, listed=True)
    with pytest.raises(UserError, match="none of the 2 videos"):
        open_corpus(f"msrvtt:{tmp_path}", "train")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\na,b,video99,x\n")
    with pytest.raises(UserError, match=r"test.csv:2: video_id 'video99' is not in"):
        open_corpus(f"msrvtt:{tmp_path}", "test")


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile ../secret.mp4\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
    ],
)
def test_nothing_outside_the_folder_is_read(tmp_path, playlist):
    """A link that leads out is no video, and a playlist that calls itself one is not followed."""
    record(tmp_path / "secret.mp4", MOVING.clip(0))
    folder = tmp_path / "in"
    folder.mkdir()
    msrvtt(folder, listed=False)
    (folder / "video0.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "secret.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "video1.mp4").write_text(playlist.format(tmp_path / "secret.mp4"))
    corpus = open_corpus(f"msrvtt:{folder}", "train")
    assert [corpus.record(row).id for row in range(len(corpus))] == ["video1"]
    with pytest.raises(BrokenImage, match="no MP4"):
        corpus.image(0)
