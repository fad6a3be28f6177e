import csv
import io
import os
import shutil
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import neurank as nr
from neurank.data import folder as reader
from neurank.data import load
from neurank.errors import DataError, FileError

SHAPE = (4, 6, 3)  # height, width, channels


def pixels(number):
    """A picture of its own for each number."""
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


def put(path, number=0, mode="RGB", size=None, **how):
    """Write the picture of that number and give its path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels(number))
    (picture if size is None else picture.resize(size)).convert(mode).save(path, **how)
    return path


def scaled(number):
    return torch.from_numpy(pixels(number)).permute(2, 0, 1) / 255


def as_rgb(path):
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255


@pytest.fixture
def data(tmp_path):
    """Two classes, cat with 2 + 5 pictures, ant with 1 + 3, each with a number of its own."""
    put(tmp_path / "train/cat/b.png", 0)
    put(tmp_path / "train/cat/a.png", 1)
    put(tmp_path / "train/ant/a.png", 2)
    for number, name in enumerate("edabc", start=10):
        put(tmp_path / f"val/cat/{name}.png", number)
    for number, name in enumerate("abc", start=20):
        put(tmp_path / f"val/ant/{name}.png", number)
    return tmp_path


def loaded(data, batch_size=200):
    return load(f"folder:{data}", batch_size=batch_size)


def check(split, numbers, targets):
    assert split.targets.tolist() == targets
    assert split.inputs.dtype == torch.float32
    assert torch.equal(split.inputs, torch.stack([scaled(number) for number in numbers]))


def test_without_test_the_pictures_of_val_are_shared_out_by_their_places(data):
    splits = loaded(data, batch_size=2)
    check(splits.train, [2, 1, 0], [0, 1, 1])
    # cat, sorted: a 12, b 13, c 14, d 11, e 10; ant: a 20, b 21, c 22
    check(splits.validation, [20, 12, 22, 14, 10], [0, 1, 0, 1, 1])
    check(splits.test, [21, 13, 11], [0, 1, 1])
    assert splits.classes == splits.test.classes == ("ant", "cat")
    assert (splits.name, splits.test.name) == (data.name, f"{data.name}/test")
    assert {part.batch_size for part in (splits.train, splits.validation, splits.test)} == {2}


def test_with_test_all_of_val_is_validation(data):
    put(data / "test/cat/x.png", 30)
    splits = loaded(data)
    check(splits.validation, [20, 12, 21, 13, 22, 14, 11, 10], [0, 1, 0, 1, 0, 1, 1, 1])
    check(splits.test, [30], [1])


def test_val_may_be_called_validation(data):
    wanted = loaded(data)
    (data / "val").rename(data / "validation")
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(loaded(data), part).inputs, getattr(wanted, part).inputs)


def test_the_first_examples_have_all_classes_alike(data):
    for name in "bee", "dog":
        for number in range(3):
            put(data / f"train/{name}/{number}.png", number)
    assert loaded(data).train.targets.tolist() == [0, 1, 2, 3, 1, 2, 3, 1, 3]


def test_a_class_counts_that_only_one_part_has(data):
    put(data / "val/bee/a.png", 40)
    (data / "train/zoo").mkdir()
    splits = loaded(data)
    assert splits.classes == ("ant", "bee", "cat", "zoo")
    check(splits.train, [2, 1, 0], [0, 2, 2])
    assert splits.validation.targets.tolist() == [0, 1, 2, 0, 2, 2]
    assert splits.test.targets.tolist() == [0, 2, 2]


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.Png", "a.bmp", "a.WEBP", "a.jpg"])
def test_pictures_are_known_by_their_extension_in_any_case(data, name):
    path = put(data / "test/cat" / name, 5)
    assert torch.equal(loaded(data).test.inputs[0], as_rgb(path))


@pytest.mark.parametrize("name", [".hidden.png", "._a.png", "notes.txt", "a.gif", "png"])
def test_other_files_are_left_out(data, name):
    put(data / "test/cat/a.png", 5)
    for beside in (data / "test/cat" / name, data / "test" / name, data / name):
        beside.write_text("no picture")
    check(loaded(data).test, [5], [1])


def test_hidden_folders_are_no_classes(data):
    put(data / "train/.thumbnails/a.png")
    assert loaded(data).classes == ("ant", "cat")


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_other_modes_become_rgb(data, mode):
    how = {"format": "JPEG", "quality": 95} if mode == "CMYK" else {}
    path = put(data / f"test/cat/a.{'jpg' if how else 'png'}", 5, mode, **how)
    with Image.open(path) as written:
        assert written.mode == mode
    found = loaded(data).test.inputs
    assert torch.equal(found[0], as_rgb(path))
    if mode in {"L", "1", "LA"}:
        assert torch.equal(found[:, 0], found[:, 1])
        assert torch.equal(found[:, 0], found[:, 2])


def test_a_palette_with_transparency_keeps_its_colours(data):
    path = data / "test/cat/a.png"
    path.parent.mkdir(parents=True)
    picture = Image.fromarray(pixels(5)).quantize(7)
    colours = np.array(picture.convert("RGB"))
    picture.save(path, transparency=bytes(range(7)))
    with Image.open(path) as written:
        assert isinstance(written.info["transparency"], bytes)
    found = loaded(data).test.inputs
    assert torch.equal(found[0], torch.from_numpy(colours).permute(2, 0, 1) / 255)


def test_more_than_8_bits_are_refused_and_not_cut_off(data):
    path = data / "val/cat/deep.png"
    Image.fromarray(np.full(SHAPE[:2], 40_000, np.uint16)).save(path)
    with pytest.raises(FileError, match=r"deep.png has more than 8 bits a channel \(mode I;16\)"):
        loaded(data)


class TestClassTable:
    def table(self, data, *lines):
        (data / "classes.csv").write_text("\n".join(("wnid,index,name", *lines)), encoding="utf-8")
        return data

    def test_labels_and_names_come_from_it(self, data):
        splits = loaded(self.table(data, "cat,1,tabby", "ant,4,", "", "bee,2", "  fly , 6 , a, b"))
        assert splits.classes == ("0", "tabby", "bee", "3", "ant", "5", "a")
        check(splits.train, [2, 1, 0], [4, 1, 1])
        assert splits.test.classes == splits.classes

    def test_a_name_may_have_a_comma_and_a_mark_may_stand_in_front(self, data):
        text = '\ufeffwnid,index,name\r\ncat,1,"cat, tabby"\r\nant,0,ànt\r\n'
        (data / "classes.csv").write_bytes(text.encode())
        assert loaded(data).classes == ("ànt", "cat, tabby")

    def test_a_folder_that_it_lacks_is_named(self, data):
        with pytest.raises(DataError, match=r"no row for the class folder 'ant' \(its first line"):
            loaded(self.table(data, "cat,1"))

    @pytest.mark.parametrize(
        ("lines", "fault"),
        [
            ((), "no rows behind its header"),
            (("cat",), "in line 2 the label ''"),
            (("ant,0", "cat,-1"), "in line 3 the label '-1'"),
            (("cat,1.5",), "the label '1.5'"),
            (("cat,²",), "the label '²'"),
            (("cat,1000000",), "from 0 to 999,999"),
            ((f"cat,{'9' * 5000}",), "from 0 to 999,999"),
            (("cat,0", "ant,0"), "the label 0 again in line 3"),
            (("cat,0", "", "cat,1"), "the folder 'cat' again in line 4"),
        ],
    )
    def test_rows_that_make_no_sense_are_refused(self, data, lines, fault):
        with pytest.raises(FileError, match=fault):
            loaded(self.table(data, *lines))

    def test_another_encoding_is_refused(self, data):
        (data / "classes.csv").write_bytes("wnid,index\nké,0".encode("latin-1"))
        with pytest.raises(FileError, match=r"classes.csv cannot be read .*UTF-8"):
            loaded(data)

    def test_a_table_of_a_wrong_kind_is_refused(self, data, monkeypatch):
        (data / "classes.csv").mkdir()
        with pytest.raises(FileError, match=r"classes.csv cannot be read"):
            loaded(data)
        (data / "classes.csv").rmdir()
        monkeypatch.setattr(reader, "_LONGEST_TABLE", 20)
        with pytest.raises(FileError, match="longer than 20 bytes"):
            loaded(self.table(data, "cat,1", "ant,0"))

    def test_a_folder_in_it_is_only_a_name(self, data):
        splits = loaded(self.table(data, "cat,0", "ant,1", "../../etc,2"))
        assert splits.classes == ("cat", "ant", "../../etc")


def test_pictures_of_two_sizes_are_named_with_the_remedy(data):
    put(data / "val/cat/z.png", 3, size=(7, 4))
    with pytest.raises(DataError) as refusal:
        loaded(data)
    said = str(refusal.value)
    assert f"{data}/train/ant/a.png is 6 x 4 pixels" in said
    assert f"{data}/val/cat/z.png is 7 x 4" in said
    assert "one size first" in said
    assert "file.py:factory" in said


class TestMissing:
    @pytest.mark.parametrize("part", ["train", "val"])
    def test_folders_are_named(self, data, part):
        shutil.rmtree(data / part)
        with pytest.raises(DataError, match=f"no folder {part}: put"):
            loaded(data)

    def test_a_file_is_no_folder(self, data):
        with pytest.raises(DataError, match=r"a.png is no folder"):
            loaded(data / "train/cat/a.png")
        shutil.rmtree(data / "val")
        (data / "val").write_text("no folder")
        with pytest.raises(FileError, match=r"val cannot be read"):
            loaded(data)

    def test_two_folders_for_validation_are_refused(self, data):
        (data / "validation").mkdir()
        with pytest.raises(DataError, match="both val and validation"):
            loaded(data)

    @pytest.mark.parametrize("part", ["train", "validation"])
    def test_a_part_without_pictures_is_named(self, data, part):
        for path in (data / part[:5].replace("valid", "val")).rglob("*.png"):
            path.rename(path.with_suffix(".tiff"))
        with pytest.raises(DataError, match=f"no pictures for {part}: put files that end in .jpg"):
            loaded(data)

    def test_one_picture_of_a_class_leaves_none_for_test(self, data):
        for name in "bcde":
            (data / f"val/cat/{name}.png").unlink()
        assert loaded(data).test.targets.tolist() == [0]
        for name in "bc":
            (data / f"val/ant/{name}.png").unlink()
        with pytest.raises(DataError, match=r"no pictures for test: .* val needs two of a class"):
            loaded(data)

    def test_without_pillow_the_remedy_is_named(self, data, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(DataError, match=r"pictures needs PIL.*: pip install pillow"):
            loaded(data)

    def test_more_than_memory_holds_is_refused(self):
        with pytest.raises(DataError, match=r"1,000,000,000 pictures of 8,000 x 8,000 pixels do"):
            reader._room(10**9, 3, 8000, 8000)


class TestLinks:
    def test_within_the_folder_are_followed(self, data):
        (data / "train/cat/c.png").symlink_to(data / "val/cat/a.png")
        (data / "test").symlink_to("val")
        splits = loaded(data)
        check(splits.train, [2, 1, 0, 12], [0, 1, 1, 1])
        assert torch.equal(splits.test.inputs, splits.validation.inputs)

    def test_to_the_folder_itself_are_followed(self, data, tmp_path_factory):
        link = tmp_path_factory.mktemp("elsewhere") / "here"
        link.symlink_to(data)
        check(loaded(link).train, [2, 1, 0], [0, 1, 1])

    @pytest.mark.parametrize("place", ["train", "test", "val/bee", "val/cat/x.png", "classes.csv"])
    @pytest.mark.parametrize("there", [True, False])
    def test_out_of_the_folder_are_refused(self, data, tmp_path_factory, place, there):
        outside = tmp_path_factory.mktemp("outside") / "secret"
        if there:
            put(outside / "cat/a.png")
        if place == "train":
            shutil.rmtree(data / "train")
        (data / place).symlink_to(outside)
        with pytest.raises(DataError, match=f"{place} is a link to {outside}, outside of"):
            loaded(data)

    def test_by_way_of_the_parent_are_refused(self, data):
        put(data.parent / f"{data.name}-beside/a.png")
        (data / "train/cat/x.png").symlink_to(f"../../../{data.name}-beside/a.png")
        with pytest.raises(DataError, match="outside of"):
            loaded(data)

    @pytest.mark.parametrize("place", ["val/bee", "val/cat/x.png", "test", "classes.csv"])
    def test_that_lead_nowhere_are_refused(self, data, place):
        (data / place).symlink_to(data / "nothing")
        with pytest.raises(FileError, match=place):
            loaded(data)

    @pytest.mark.parametrize("place", ["val/bee", "val/cat/x.png", "test"])
    def test_that_lead_round_are_refused(self, data, place):
        (data / place).symlink_to(data / place)
        with pytest.raises(FileError, match=place):
            loaded(data)

    def test_a_pipe_is_no_picture(self, data):
        os.mkfifo(data / "val/cat/x.png")
        with pytest.raises(FileError, match=r"x.png is no file"):
            loaded(data)


class TestDamage:
    @pytest.mark.parametrize("form", ["png", "jpg", "bmp", "webp"])
    @pytest.mark.parametrize("end", [0, 20, -30])
    def test_a_file_that_is_cut_short_is_named(self, data, form, end):
        path = put(data / f"val/cat/short.{form}", 5)
        path.write_bytes(path.read_bytes()[:end])
        with pytest.raises(FileError, match=f"short.{form} is no readable picture"):
            loaded(data)

    def test_a_picture_of_another_form_is_refused(self, data):
        path = data / "val/cat/x.png"
        Image.fromarray(pixels(0)).save(path, "GIF")
        with pytest.raises(FileError, match=r"x.png is no readable picture"):
            loaded(data)

    @pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
    def test_changed_bytes_are_read_or_refused_by_name(self, tmp_path, form):
        chance = np.random.default_rng(0)
        stream = io.BytesIO()
        Image.fromarray(pixels(0)).save(stream, form)
        whole, path = stream.getvalue(), tmp_path / "x.png"
        refused = 0
        for _ in range(300):
            changed = np.frombuffer(whole, np.uint8).copy()
            places = chance.integers(len(whole), size=3)
            changed[places] = chance.integers(256, size=3)
            path.write_bytes(changed.tobytes())
            try:
                assert len(reader._decoded([path], reader._size(path), "decoding")) == 1
            except FileError as refusal:
                assert str(path) in str(refusal)  # noqa: PT017
                refused += 1
        assert refused

    @pytest.mark.parametrize("error", [OSError, SyntaxError, ValueError, EOFError])
    def test_whatever_pillow_says_of_damage_names_the_file(self, data, monkeypatch, error):
        def broken(*_):
            raise error("broken chunk")

        monkeypatch.setattr(Image.Image, "convert", broken)
        with pytest.raises(FileError, match=r"a.png is no readable picture \(broken chunk\)"):
            loaded(data)

    def test_too_many_pixels_are_refused_before_they_are_decoded(self, data, monkeypatch):
        path = data / "val/cat/large.png"
        Image.new("1", (8001, 8000)).save(path)
        assert path.stat().st_size < 50_000
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
        with pytest.raises(FileError, match=r"large.png has 64,008,000 of at most 64,000,000"):
            loaded(data)

    @pytest.mark.parametrize("side", [10_000, 40_000])
    def test_neither_warns_pillow_nor_comes_its_own_error_through(self, data, side):
        path = put(data / "val/cat/large.png", 0)
        content = bytearray(path.read_bytes())
        content[16:24] = side.to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)
        too_large = pytest.raises(FileError, match=r"large.png (has|is too)")
        with warnings.catch_warnings(record=True) as warned, too_large:
            loaded(data)
        assert not warned


def test_some_of_the_real_pictures(data_dir, tmp_path):
    """Six photographs of each of two classes, and the labels of classes.csv."""
    given = data_dir / "imagenet20"
    shutil.copy(given / "classes.csv", tmp_path)
    for part in ("train", "val"):
        for wnid in ("n01440764", "n03888257"):
            (tmp_path / part / wnid).mkdir(parents=True)
            for file in sorted((given / part / wnid).iterdir())[:6]:
                shutil.copy(file, tmp_path / part / wnid)
    splits = loaded(tmp_path)
    assert splits.train.inputs.shape == (12, 3, 224, 224)
    assert splits.train.targets.tolist() == [0, 701] * 6
    assert splits.validation.examples == splits.test.examples == 6
    assert len(splits.classes) == 702
    assert (splits.classes[0], splits.classes[1], splits.classes[701]) == (
        "tench",
        "1",
        "parachute",
    )
    names = sorted(path.name for path in (given / "val/n03888257").iterdir())
    assert torch.equal(splits.test.inputs[3], as_rgb(given / "val/n03888257" / names[3]))


@pytest.mark.slow
def test_all_of_the_real_pictures(data_dir):
    """2,000 photographs of 20 classes, and SqueezeNet's accuracy on 200 of them."""
    with (data_dir / "imagenet20/classes.csv").open(encoding="utf-8") as lines:
        rows = {int(row["imagenet_index"]): row["name"] for row in csv.DictReader(lines)}
    splits = loaded(data_dir / "imagenet20", batch_size=50)
    for part, of_each in ((splits.train, 50), (splits.validation, 25), (splits.test, 25)):
        assert part.targets.bincount()[list(rows)].tolist() == [of_each] * 20
        assert part.examples == 20 * of_each
    assert {label: splits.classes[label] for label in rows} == rows
    model = nr.zoo.squeezenet1_1().eval()
    model.load_state_dict(load_file(data_dir / "models/squeezenet1_1_imagenet.safetensors"))
    some = splits.test.first(200).normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        right = torch.cat([model(inputs).argmax(1) == targets for inputs, targets in some])
    assert 0.50 <= float(right.float().mean()) <= 0.63  # 56.4 % on all of val


def test_paths_are_read_relative_to_where_one_is(data, monkeypatch):
    monkeypatch.chdir(data)
    splits = load("folder:.")
    assert splits.name == Path(data).name
    check(splits.train, [2, 1, 0], [0, 1, 1])
