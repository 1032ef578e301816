import json
import logging
from pathlib import Path

import pytest

from attar.cli.main import main
from attar.data.classes import make_class_list, read_class_list
from attar.errors import UsageError
from attar.language.config import DescribeConfig
from attar.language.describe import Undescribed, describe
from attar.language.wordnet import Meaning, WordNet


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.shipped()


def test_sentences_are_matched_by_line_number_and_empty_ones_named(tmp_path, caplog) -> None:
    file = tmp_path / "chatgpt.txt"
    file.write_bytes("A round tart.\r\n.\r\nLong\x85 ribs.\r\n\r\n.\r\n".encode())
    names = ["apple_pie", "baby back", "ribs", "beef", "last"]
    out = describe(make_class_list(names), "file", tmp_path / "out.json", DescribeConfig(file=file))
    described = read_class_list(out)
    assert described.names == tuple(names)
    assert described.descriptions == (("A round tart.",), (), ("Long\x85 ribs.",), (), ())
    assert "3 empty descriptions" in caplog.text
    assert "baby back, beef, last" in caplog.text


@pytest.mark.parametrize("text", ["one\n", "one\ntwo\nthree\n", "\n\none\n"])
def test_another_number_of_lines_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"lines for 2 classes"):
        describe(
            make_class_list(["a", "b"]), "file", tmp_path / "out.json", DescribeConfig(file=file)
        )
    assert not (tmp_path / "out.json").exists()


def test_a_json_file_is_matched_by_name(tmp_path: Path, caplog) -> None:
    file = tmp_path / "given.json"
    given = {"Guide_Dog": ["It leads.", "."], "cat": "It purrs.", "owl": ["."], "unused": ["x"]}
    file.write_text(json.dumps(given))
    classes = make_class_list(["cat", "guide dog", "horse", "owl"])
    with pytest.raises(Undescribed) as failure:
        describe(classes, "file", tmp_path / "out.json", DescribeConfig(file=file))
    assert failure.value.failed == {"horse": f"not in {file}"}
    described = read_class_list(tmp_path / "out.json")
    assert described.descriptions == (("It purrs.",), ("It leads.",), (), ())
    assert "owl" in caplog.text


def test_homonyms_are_shown_and_a_wnid_can_be_pinned(tmp_path: Path, caplog) -> None:
    classes, out = make_class_list(["crane", "Golden_Retriever"]), tmp_path / "out.json"
    with caplog.at_level(logging.INFO, logger="attar"):
        describe(classes, "wordnet", out, DescribeConfig())
    bird, dog = read_class_list(out).descriptions
    assert "wading bird" in bird[0]
    assert "golden" in dog[0]
    assert "'crane' has 2 meanings" in caplog.text
    assert "--pin 'crane=n03126707'" in caplog.text
    assert "n02012849 crane: large long-necked wading bird" in caplog.text
    assert "n03126707 crane: lifts and moves heavy objects" in caplog.text
    caplog.clear()
    describe(classes, "wordnet", out, DescribeConfig(pin=("Crane=n03126707",)))
    assert "lifts and moves heavy objects" in read_class_list(out).descriptions[0][0]
    assert "meanings" not in caplog.text


def test_a_class_that_wordnet_lacks_is_named(tmp_path: Path, caplog) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(Undescribed) as failure:
        describe(make_class_list(["cat", "zorblax"]), "wordnet", out, DescribeConfig())
    assert list(failure.value.failed) == ["zorblax"]
    assert "zorblax" in caplog.text
    assert read_class_list(out).descriptions[1] == ()


def test_meanings_equal_timm_s(wordnet: WordNet) -> None:
    from timm.data import ImageNetInfo

    theirs = ImageNetInfo("imagenet-22k").label_descriptions(detailed=True, as_dict=True)
    assert len(wordnet) >= len(theirs) == 21841
    for wnid, text in theirs.items():
        (meaning,) = wordnet.meanings(wnid)
        assert f"{', '.join(meaning.words)}: {meaning.definition}" == text


def test_spelling_and_order_of_meanings(wordnet: WordNet) -> None:
    for name in ("great white shark", "Great_White-Shark", "white shark"):
        assert wordnet.meanings(name)[0].wnid == "n01484850"
    assert [m.wnid for m in wordnet.meanings("bass")] == ["n02565573", "n02803349", "n09842528"]
    made = WordNet(
        Meaning(wnid=wnid, words=words, definition=wnid)
        for wnid, words in (("n3", ("seal",)), ("n1", ("wax", "Seal")), ("n2", ("seal", "fur")))
    )
    assert [meaning.wnid for meaning in made.meanings("seal")] == ["n2", "n3", "n1"]


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        ("crane", "should read CLASS=WNID"),
        ("crain=n02012849", "no class 'crain'"),
        ("crane=n99999999", "n02012849 crane"),
    ],
)
def test_wrong_pins(tmp_path: Path, pin: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        describe(
            make_class_list(["crane", "cat"]),
            "wordnet",
            tmp_path / "out.json",
            DescribeConfig(pin=(pin,)),
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--source=file", "--out=x.json"], "--file"),
        (["--source=wordnet", "--out=x.txt"], "x.txt"),
        (["--source=wordnet", "--out={classes}"], "class list itself"),
        (["--source=file", "--out=x.json", "--file=missing.txt"], "missing.txt"),
        (["--source=wordnet", "--out=x.json", "--teacher=nonsense"], "nonsense"),
    ],
)
def test_wrong_use(tmp_path: Path, monkeypatch, capfd, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    classes = tmp_path / "classes.json"
    classes.write_text('["cat", "dog"]')
    with pytest.raises(SystemExit) as stopped:
        main(["describe", str(classes), *[word.format(classes=classes) for word in words]])
    assert stopped.value.code == 2
    assert said in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["classes.json"]
